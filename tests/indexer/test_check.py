"""check finds the recipes whose examples have no gradient of their own."""

import pytest

from indexer.build import build_index
from indexer.build_settings import BuildSettings
from indexer.check import check_recipe
from indexer.recipe import RecipeError
from tests.indexer.small_recipes import CLASSIFIER, REGRESSION, write_recipe

MODEL = "nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).eval()"


AUGMENTED = """
class _Rows(list):
    def __getitem__(self, row):
        x, y = list.__getitem__(self, row)
        return x + torch.rand(5), y
"""


def failures(tmp_path, source, **choices):
    path = write_recipe(tmp_path, source)
    return {found.check: found.detail for found in check_recipe(BuildSettings(str(path), **choices)) if not found.ok}


@pytest.mark.parametrize("source", [CLASSIFIER, REGRESSION])
def test_sound_recipes_pass_every_check(tmp_path, source):
    findings = check_recipe(BuildSettings(str(write_recipe(tmp_path, source))))
    assert [found.check for found in findings if not found.ok] == []
    assert len(findings) == 8


def test_the_builtin_digits_pass():
    assert all(found.ok for found in check_recipe(BuildSettings("digits", options={"epochs": 1})))


def module(body: str) -> str:
    return CLASSIFIER.replace(
        "def model(",
        f"class _Odd(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.linear = nn.Linear(5, 3)\n    def forward(self, x):\n        {body}\n\n\ndef model(",
    ).replace(MODEL, "_Odd().eval()")


def test_a_model_that_normalises_over_the_batch_is_refused_with_an_explanation(tmp_path):
    found = failures(
        tmp_path, module("return self.linear(x - x.mean(0, keepdim=True))").replace("model[:-1](inputs)", "None")
    )
    assert "outputs do not depend on the rest of the batch" in found
    assert "gradients do not depend on the rest of the batch" in found
    assert "eval mode" in found["gradients do not depend on the rest of the batch"]


def test_batch_norm_without_running_statistics_is_refused(tmp_path):
    layer = "nn.BatchNorm1d(width, track_running_stats=False)"
    norm = f"nn.Sequential(nn.Linear(5, width), {layer}, nn.Linear(width, 3)).eval()"
    found = failures(tmp_path, CLASSIFIER.replace(MODEL, norm))
    assert list(found) == ["outputs do not depend on the rest of the batch"]
    assert "1 (BatchNorm1d) keeps no running statistics (track_running_stats=False)" in found.popitem()[1]
    with pytest.raises(RecipeError, match="Train with track_running_stats=True"):
        build_index(BuildSettings(str(tmp_path / "points.py")), tmp_path / "index")


@pytest.mark.parametrize("sketch", ["kronecker", "sjlt"])
def test_it_is_refused_by_a_build_whatever_the_sketch(tmp_path, sketch):
    layer = "nn.BatchNorm1d(width, track_running_stats=False)"
    norm = f"nn.Sequential(nn.Linear(5, width), {layer}, nn.Linear(width, 3)).eval()"
    settings = BuildSettings(str(write_recipe(tmp_path, CLASSIFIER.replace(MODEL, norm))), sketch=sketch, dim=24)
    with pytest.raises(RecipeError, match="keeps no running statistics"):
        build_index(settings, tmp_path / "index")


def test_gradients_by_frequency_are_refused_by_name(tmp_path):
    source = module("return self.linear(self.embedding((x > 0).long()).mean(2))").replace(
        "self.linear = nn.Linear(5, 3)",
        "self.linear, self.embedding = nn.Linear(5, 3), nn.Embedding(2, 4, scale_grad_by_freq=True)",
    )
    found = failures(tmp_path, source.replace("model[:-1](inputs)", "None"))
    assert "embedding divides gradients" in found["gradients do not depend on the rest of the batch"]


def test_a_model_in_training_mode_is_refused_by_check_and_by_build(tmp_path):
    source = CLASSIFIER.replace(MODEL, MODEL.removesuffix(".eval()"))
    assert "returned a model in training mode" in failures(tmp_path, source)["the recipe loads"]
    with pytest.raises(RecipeError, match="training mode"):
        build_index(BuildSettings(str(tmp_path / "points.py")), tmp_path / "index")


def test_batch_norm_in_eval_mode_passes(tmp_path):
    norm = "nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.Linear(width, 3)).eval()"
    assert failures(tmp_path, CLASSIFIER.replace(MODEL, norm)) == {}


def test_randomness_in_eval_mode_is_found(tmp_path):
    found = failures(tmp_path, module("return self.linear(x) + torch.rand(()) "))
    assert "random in eval mode" in found["outputs are finite and deterministic"]


def test_augmentation_is_found(tmp_path):
    source = CLASSIFIER.replace("return _points(count, 0)", "return _Rows(_points(count, 0))") + AUGMENTED
    assert "switch augmentation off" in failures(tmp_path, source)["examples are the same when read again"]


def test_outputs_that_are_not_finite_are_found(tmp_path):
    found = failures(tmp_path, module("return self.linear(x) * float('inf')"))
    assert "train row 0: the model's outputs hold NaN or an infinity" in found["outputs are finite and deterministic"]
    source = CLASSIFIER.replace("return [(x, ", "inputs[3] = float('nan')\n    return [(x, ")
    told = failures(tmp_path, source)["outputs are finite and deterministic"]
    assert "train row 3: the model's outputs hold NaN or an infinity, as those of 1 of the 8 rows looked at" in told


def test_a_label_that_is_no_output_is_found(tmp_path):
    found = failures(tmp_path, CLASSIFIER.replace("int(x[:3].argmax())", "7"))
    told = found["examples can be read"]
    assert "train row 0: label 7 is not an output of the model, which has 0 to 2" in told
    assert "Number the labels from 0, give the model an output for each" in told


def test_what_cannot_even_be_loaded_is_one_finding(tmp_path):
    assert list(failures(tmp_path, CLASSIFIER, include=("encoder",))) == ["the recipe loads"]
    assert list(failures(tmp_path, CLASSIFIER.replace("_points(count, 0)", "[]"))) == ["the recipe loads"]


def test_a_model_that_vmap_refuses_is_announced_and_passes(tmp_path):
    # An in-place write of a batched value into an unbatched buffer is what vmap cannot do.
    product = "nn.functional.linear(x, self.linear.weight)"  # hooks do not see it
    body = f"buffer = torch.zeros(x.shape[0], 3)\n        buffer.copy_({product})\n        return buffer"
    path = write_recipe(tmp_path, module(body))
    findings = check_recipe(BuildSettings(str(path)))
    assert [found for found in findings if not found.ok] == []
    assert "vmap refuses" in findings[-1].detail


@pytest.mark.parametrize("sketch", ["sjlt", "kronecker"])
def test_a_shorter_type_is_checked_against_float32(tmp_path, sketch):
    path = write_recipe(tmp_path)
    settings = BuildSettings(str(path), sketch=sketch, dim=32, compute_dtype="bfloat16")
    findings = check_recipe(settings)
    assert [found for found in findings if not found.ok] == []
    moved = float(findings[-1].detail.partition("%")[0])
    assert 0.01 < moved < 10.0  # bfloat16 has 8 binary digits: 0.4 % each time it rounds
    assert findings[-1].check == "sketches computed in bfloat16 are near those in float32"
    assert "bfloat16" not in str(check_recipe(BuildSettings(str(path), sketch=sketch, dim=32)))


def test_a_model_that_leaves_the_range_of_float16_is_found(tmp_path):
    source = module("return self.linear(x) * 1e6")
    found = failures(tmp_path, source, compute_dtype="float16")
    assert "in float16; bfloat16 has float32's range" in found["outputs are finite and deterministic"]
    assert failures(tmp_path, source, compute_dtype="bfloat16") == {}


WITHOUT_GRADIENT = [
    "with torch.no_grad():\n            return self.linear(x)",
    "with torch.inference_mode():\n            return self.linear(x)",
    "return self.linear(x).detach()",
    "return torch.utils.checkpoint.checkpoint(self.linear, x, use_reentrant=True)",
]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # what torch says of such a checkpoint
@pytest.mark.parametrize("body", WITHOUT_GRADIENT, ids=["no_grad", "inference_mode", "detach", "reentrant"])
def test_a_model_that_no_gradient_comes_out_of_is_refused(tmp_path, body):
    source = (
        module(body)
        .replace("model[:-1](inputs)", "None")
        .replace("import torch\n", "import torch\nimport torch.utils.checkpoint\n", 1)
    )
    found = failures(tmp_path, source)
    assert "no gradient reaches the chosen parameters" in found["gradients do not depend on the rest of the batch"]
    with pytest.raises(RecipeError, match="no gradient reaches the chosen parameters"):
        build_index(BuildSettings(str(tmp_path / "points.py"), dim=16), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_gradient_that_is_zero_is_one(tmp_path):
    """Of a hinge that every row satisfies."""
    source = CLASSIFIER + "\n\ndef measurement(outputs, label):\n    return (outputs.sum() - 1e6).clamp(min=0)\n"
    assert failures(tmp_path, source) == {}


def test_what_autograd_cannot_differentiate_is_a_finding(tmp_path):
    body = "hidden = self.linear(x).exp()\n        hidden += 1\n        return hidden"
    found = failures(tmp_path, module(body).replace("model[:-1](inputs)", "None"))
    assert "torch.autograd cannot differentiate" in found["gradients do not depend on the rest of the batch"]


def test_parameters_that_take_no_part_are_named(tmp_path):
    source = module("return self.linear(x)").replace(
        "self.linear = nn.Linear(5, 3)", "self.linear, self.idle = nn.Linear(5, 3), nn.Linear(2, 2)"
    )
    findings = check_recipe(BuildSettings(str(write_recipe(tmp_path, source.replace("model[:-1](inputs)", "None")))))
    assert next(found.detail for found in findings if "no part in the measurement" in found.detail).endswith(
        "rows looked at: 'idle.weight', 'idle.bias'"
    )
    assert all(found.ok for found in findings)
