"""8-bit codes are the nearest ones, and their errors bound the distance in exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from sketchstore.codes import encode
from sketchstore.codes_build import build_codes
from sketchstore.errors import MissingDerivedError, UnknownViewError
from sketchstore.reader import open_index
from tests.index_factory import make_index

ROWS = {
    "random": np.random.default_rng(0).standard_normal(37),
    "heavy tails": np.random.default_rng(1).standard_cauchy(37),
    "zero": np.zeros(37),
    "one value": np.eye(1, 37, 5)[0] * 3.0,
    "codes themselves": np.arange(-18, 19) * 127 / 18,
    "ties": np.r_[127.0, np.arange(36) - 17.5],
    "third of a step": np.r_[127.0, np.full(36, 1 / 3)],
    "huge": np.random.default_rng(2).standard_normal(37) * 2.0**500,
    "tiny": np.random.default_rng(3).standard_normal(37) * 2.0**-900,
    "subnormal scale": np.random.default_rng(4).standard_normal(37) * 2.0**-1019,
    "smallest numbers": np.r_[5e-324, np.zeros(36)],
    "both ends of the range": np.r_[1e150, np.full(36, 5e-324)],
}


def exact_squared_distance(row: np.ndarray, codes: np.ndarray, scale: float) -> Fraction:
    return sum((Fraction(value) - Fraction(scale) * int(code)) ** 2 for value, code in zip(row, codes, strict=True))


@pytest.mark.parametrize("slack", [1.0, 2.0])
@pytest.mark.parametrize("name", ROWS)
def test_errors_bound_the_distance_in_exact_arithmetic(name, slack):
    row = ROWS[name]
    codes, scales, errors = (values[0].numpy() for values in encode(torch.from_numpy(row[None]), slack))
    squared = exact_squared_distance(row, codes, float(scales))
    assert squared <= Fraction(float(errors)) ** 2
    if scales > 0:  # and hardly more: half a step a value is the most that rounding can take
        assert float(errors) <= 0.5000001 * float(scales) * len(row) ** 0.5
        distance = float(squared / Fraction(float(scales)) ** 2) ** 0.5  # in steps
        assert float(errors) / float(scales) <= distance * (1 + 1e-12) + 1e-12  # 2 · 2⁻⁴⁵ √d steps for the quotients


@pytest.mark.parametrize("name", ROWS)
def test_codes_are_the_quotients_rounded_to_even(name):
    row = ROWS[name]
    codes, scales, _ = (values[0].numpy() for values in encode(torch.from_numpy(row[None])))
    scale = np.abs(row).max() / 127
    if scale < 2.0**-1022:
        assert (scales, codes.any()) == (0.0, False)
    else:
        assert scales == scale
        assert np.array_equal(codes, np.rint(row / scale))
        assert np.abs(codes).max() == 127


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("rows", "dim"), [(60, 16), (7, 3), (1, 1), (33, 5)])
def test_stored_codes_are_those_of_every_row_in_every_shard(tmp_path, rows, dim, dtype, monkeypatch):
    monkeypatch.setattr("sketchstore.codes_build.BLOCK_BYTES", 8 * dim * 10)  # blocks that straddle shards
    index = make_index(tmp_path, view="margin", num_rows=rows, dim=dim, dtype=dtype)
    done: list[int] = []
    build_codes(index, "margin", done.append)
    assert sum(done) == rows
    found = open_index(index.path).derived.codes("margin")
    expected = encode(index.view("margin").sketches(slice(None)))
    assert (type(found.codes), found.codes.dtype, found.codes.flags.c_contiguous) == (np.ndarray, np.int8, True)
    assert np.array_equal(found.codes, expected.codes)
    assert np.array_equal(found.scales, expected.scales)
    assert found.errors == pytest.approx(expected.errors.numpy(), rel=1e-14)  # sums in another order by block size
    assert found.scales.flags.aligned
    assert found.errors.flags.aligned
    assert found.codes.ctypes.data % 64 == 0


def test_codes_of_a_view_whose_labels_compare_hold_all_rows(tmp_path):
    index = make_index(tmp_path, view="own")
    build_codes(index, "own")
    entry = index.derived.entry("codes", "own")
    assert (entry.partition, entry.rows, entry.options) == ("all", 60, {"bits": 8})
    assert index.derived.codes("own").codes.shape == (60, 16)


def test_an_index_without_codes_says_how_to_get_them(tmp_path):
    index = make_index(tmp_path)
    with pytest.raises(MissingDerivedError, match="indexer derive"):
        index.derived.codes("own")
    with pytest.raises(UnknownViewError):
        build_codes(index, "margin")


def test_codes_of_overwritten_sketches_are_stale(tmp_path):
    from sketchstore.errors import StaleDerivedError

    first, second = make_index(tmp_path / "a"), make_index(tmp_path / "b", seed=1)
    build_codes(first, "own")
    (first.path / "derived").rename(second.path / "derived")
    with pytest.raises(StaleDerivedError, match="indexer derive"):
        second.derived.codes("own")
