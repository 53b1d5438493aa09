"""A representation that a module reads anyway comes with the sketches; any other takes a forward pass of its own."""

from pathlib import Path

import pytest
import torch
from torch import nn

from indexer.build import build_index
from indexer.build_settings import BuildSettings
from indexer.recipe_file import load_recipe
from indexer.representation_place import module_that_reads
from sketchstore.reader import open_index
from tests.indexer.small_recipes import CLASSIFIER, write_recipe


class _Twice(nn.Module):
    """A head that is called on two things, the representation among them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)) + self.head(x[:, :3])


def test_the_last_module_that_reads_it_is_found() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(), nn.Sequential(nn.Linear(6, 3))).eval()
    x = torch.randn(4, 4)
    assert module_that_reads(model, model[:2](x), lambda: model(x)) is model[3][0]
    assert module_that_reads(model, model[:1](x), lambda: model(x)) is model[1]


def test_what_no_module_reads_is_not_found() -> None:
    torch.manual_seed(0)
    model, x = _Twice().eval(), torch.randn(4, 4)
    assert module_that_reads(model, model.body(x), lambda: model(x)) is None  # the head is called twice
    assert module_that_reads(model, 2 * x, lambda: model(x)) is None
    assert module_that_reads(model, x[:, :3], lambda: model(x)) is None
    assert module_that_reads(model, torch.zeros(4, 4), lambda: model(torch.zeros(4, 4))) is None  # zero says nothing


SORTING = """
class _Sorting(nn.Sequential):
    def forward(self, x):
        order = x[:, 0].argsort(descending=True)
        return self[2](self[1](self[0](x))[order])[order.argsort()]


def _ordered(count):
    rows = _points(count, 0)
    for row in (0, 19, 39, 59):
        rows[row][0][0] = 9.0 - row / 10
    return rows
"""


def test_a_module_that_reads_its_rows_in_another_order_is_not_taken(tmp_path: Path) -> None:
    """The head sees its batch sorted; the rows that modules are looked at with are sorted already."""
    source = CLASSIFIER.replace("nn.Sequential(nn.Linear(5", "_Sorting(nn.Linear(5")
    source = source.replace("return _points(count, 0)", "return _ordered(count)")
    source = source.replace("return model[:-1](inputs)", "return model[1](model[0](inputs))") + SORTING
    recipe = write_recipe(tmp_path, source)
    build_index(BuildSettings(str(recipe), sketch="sjlt", dim=40), tmp_path / "points", faiss=None)
    loaded = load_recipe(str(recipe))
    train, model = loaded.train_set(), loaded.model()
    inputs = torch.stack([train[row][0] for row in range(60)])
    with torch.no_grad():
        expected = model[1](model[0](inputs))
    found = torch.as_tensor(open_index(tmp_path / "points").column("representations"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # float32 passes in other batches


COUNT = """
def _count(output):
    with open({path!r}, "a") as passes:
        print(len(output), file=passes)
"""


@pytest.mark.parametrize("sketch", ["identity", "sjlt", "kronecker"])
def test_a_representation_that_a_module_reads_needs_no_pass_of_its_own(tmp_path: Path, sketch: str) -> None:
    """Rows through the first layer are counted by a hook that the recipe sets."""
    counted = CLASSIFIER.replace("    return nn.Sequential(", "    made = nn.Sequential(").replace(
        "nn.Linear(width, 3)).eval()",
        "nn.Linear(width, 3)).eval()\n"
        "    made[0].register_forward_hook(lambda module, given, output: _count(output))\n"
        "    return made",
    )
    rows = {}
    for name, factor in (("read", ""), ("scaled", "2 * ")):
        source = counted.replace("return model[:-1]", f"return {factor}model[:-1]") + COUNT.format(
            path=str(tmp_path / name)
        )
        recipe = write_recipe(tmp_path, source, f"{name}.py")
        settings = BuildSettings(
            str(recipe), sketch=sketch, dim=None if sketch == "identity" else 40, num_queries=0, batch_rows=7
        )
        build_index(settings, tmp_path / f"{name}-index", faiss=None)
        rows[name] = sum(int(line) for line in (tmp_path / name).read_text().split())
    assert rows["scaled"] - rows["read"] == 60 + 9  # and one row of each of nine batches alone
    read, scaled = (open_index(tmp_path / f"{name}-index").column("representations") for name in rows)
    # float32 passes over the same rows in batches of other sizes
    torch.testing.assert_close(2 * torch.as_tensor(read), torch.as_tensor(scaled), rtol=1e-5, atol=1e-6)
