"""Shorter types round what the sketch multiplies, and nothing else; a build says what that does."""

from pathlib import Path

import pytest
import torch

from indexer.build import build_index
from indexer.build_settings import BuildSettings, BuildSettingsError
from indexer.precision import Precision
from sketchstore.reader import open_index
from tests.indexer.small_recipes import CLASSIFIER, write_recipe

#: Significant binary digits of each type.
DIGITS = {"bfloat16": 8, "float16": 11}


@pytest.mark.parametrize("dtype", DIGITS)
@pytest.mark.parametrize("size", [1e-30, 1e-7, 1.0, 1e7, 1e30])
def test_rounding_is_relative_whatever_the_size_of_a_row(dtype: str, size: float) -> None:
    gradients = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * size
    rounded = Precision(dtype, "cpu").rounded(gradients)  # type: ignore[arg-type]
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, gradients)
    # Half a unit in the last place; below 2**-14 of the row's largest entry float16 is subnormal and has a fixed one.
    unit = 2.0 ** -DIGITS[dtype]
    allowed = unit * gradients.abs() + 2.0**-24 * gradients.abs().amax(1, keepdim=True)
    assert bool(((rounded - gradients).abs() <= allowed).all())


def test_rounding_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    gradients = torch.randn(3, 20, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1e-6], [1.0], [1e6]])
    precision = Precision("float16", "cpu")
    together = precision.rounded(gradients)
    assert all(torch.equal(precision.rounded(gradients[row : row + 1])[0], together[row]) for row in range(3))


def test_zeros_and_what_is_not_finite_stay_what_they_are() -> None:
    rows = torch.tensor([[0.0, 0.0], [float("inf"), 1.0], [float("nan"), 1.0]])
    for dtype in DIGITS:
        rounded = Precision(dtype, "cpu").rounded(rows)  # type: ignore[arg-type]
        assert torch.equal(rounded[0], rows[0])
        assert not bool(torch.isfinite(rounded[1:, 0]).any())


NORMALISED = """
class _Gained(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(1, 3, 2)
        self.norm = nn.BatchNorm1d(3)
        self.gain = nn.Parameter(torch.tensor([1.5, 0.5, 1.0]))

    def forward(self, x):
        return self.norm(self.convolution(x[:, None])).tanh().mean(2) * self.gain
"""


@pytest.mark.parametrize("dtype", DIGITS)
def test_a_model_that_vmap_refuses_in_a_short_type_alone_takes_the_slow_way(tmp_path: Path, dtype: str) -> None:
    # A batch norm after a convolution in a short type is one that vmap cannot run; the bare gain is for vmap alone.
    source = CLASSIFIER.replace("nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3))", "_Gained()")
    source = source.replace("return model[:-1](inputs)", "return inputs").replace(
        "def _points", NORMALISED + "\n\ndef _points"
    )
    found = {}
    for name in ("float32", dtype):
        settings = BuildSettings(str(write_recipe(tmp_path, source)), sketch="identity", compute_dtype=name, ntk=False)
        report = build_index(settings, tmp_path / name, faiss=None)
        found[name] = open_index(tmp_path / name).view("own").sketches(slice(0, 60))
        assert any("torch.func.vmap refuses" in note for note in report.notes) == (name == dtype)
    # Some ten roundings in a row, each of half a unit in the last place.
    assert float((found[dtype] - found["float32"]).norm() / found["float32"].norm()) < 10 * 2.0 ** -DIGITS[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DIGITS)
def test_the_manifest_says_how_far_a_shorter_type_is_from_float32(tmp_path, dtype) -> None:
    path = write_recipe(tmp_path)
    built = {}
    for name in ("float32", dtype):
        settings = BuildSettings(str(path), sketch="rademacher", dim=32, compute_dtype=name, weights=False)
        build_index(settings, tmp_path / name, faiss=None)
        built[name] = open_index(tmp_path / name)
    manifest = built[dtype].manifest
    assert manifest.build.options["compute_dtype"] == dtype
    assert "compute" not in built["float32"].manifest.distortion
    said = manifest.distortion["compute"]
    assert said["dtype"] == dtype
    full, short = (index.view("own").sketches(slice(0, 60)).double() for index in (built["float32"], built[dtype]))
    error = ((short - full).norm(dim=1) / full.norm(dim=1)).square().mean().sqrt()
    # Passes and gradients are rounded some ten times in a row; another factor for the sample being only some rows.
    assert 0 < said["sketch_error_rms"] <= said["sketch_error_max"] < 30 * 2.0 ** -DIGITS[dtype]
    assert 0.3 < said["sketch_error_rms"] / float(error) < 3


def test_another_type_is_refused() -> None:
    with pytest.raises(BuildSettingsError, match="--compute-dtype 'int8' must be float32, bfloat16, float16"):
        BuildSettings("digits", compute_dtype="int8").check()  # type: ignore[arg-type]
