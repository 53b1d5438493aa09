"""Heads and tails bound every product with a row, whatever the rows, the vector and the basis."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from sketchstore.errors import MissingDerivedError, StaleDerivedError, UnknownViewError
from sketchstore.heads import Heads, encode_heads, head_dim, heads_bytes, least_errors, project
from sketchstore.heads_build import build_heads
from sketchstore.principal_directions import leading_directions
from sketchstore.reader import open_index, verify_index
from tests.index_factory import make_index

DIM, ROWS = 160, 200  # 10 directions


def decaying(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Rows whose variance falls along rotated directions, as that of real features does."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    return rng.standard_normal((rows, dim)) / np.arange(1, dim + 1) @ rotation


def with_zeros(values: np.ndarray) -> np.ndarray:
    values[[0, 7, -1]] = 0.0
    return values


SKETCHES = {
    "decaying": decaying(ROWS, DIM),
    "no structure": np.random.default_rng(1).standard_normal((ROWS, DIM)),
    "zero rows": with_zeros(decaying(ROWS, DIM, 2)),
    "all zero": np.zeros((ROWS, DIM)),
    "duplicates": np.repeat(decaying(5, DIM, 3), ROWS // 5, axis=0),
    "rank 1": np.outer(np.random.default_rng(4).standard_cauchy(ROWS), decaying(1, DIM, 4)),
    "rows of their own size": decaying(ROWS, DIM, 5) * np.geomspace(1e-12, 1e12, ROWS)[:, None],
    "float32's smallest": decaying(ROWS, DIM, 6) * 1e-41,
    "float32's largest": decaying(ROWS, DIM, 7) * 1e37,
}
#: float16 has no room for the sizes of the others.
IN_FLOAT16 = ["decaying", "no structure", "zero rows", "all zero", "duplicates", "float32's smallest"]
CASES = [(name, "float32") for name in SKETCHES] + [(name, "float16") for name in IN_FLOAT16]


def assert_bounds(sketches: np.ndarray, heads: Heads) -> None:
    """Every product of a row with vectors that are random, the rows, their heads and their tails, in float64.

    What this rounds is a thousandth of what the bounds allow for rounding.
    """
    basis = heads.basis
    tails = sketches - (sketches @ basis.T) @ basis
    unit = np.abs(sketches).max() or 1.0
    random = np.random.default_rng(0).standard_normal((20, sketches.shape[1]))
    for vectors in (random, sketches / unit, tails / unit, (sketches - tails) / unit, (sketches - 2 * tails) / unit):
        inside = vectors @ basis.T
        outside = vectors - inside @ basis
        known = (heads.codes @ inside.T) * heads.scales[:, None]
        bounds = np.outer(heads.errors, np.linalg.norm(inside, axis=1))
        bounds += np.outer(heads.tails, np.linalg.norm(outside, axis=1))
        assert np.all(np.abs(sketches @ vectors.T - known) <= bounds)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_products_are_within_the_bounds_of_heads_and_tails(tmp_path, name, dtype):
    index = make_index(tmp_path, view="margin", sketches={"margin": SKETCHES[name]}, dtype=dtype)
    assert (index.view("margin").scale == 1.0) == (dtype == "float32" or name == "all zero")
    build_heads(index, "margin")
    assert_bounds(index.view("margin").sketches(slice(None)).numpy(), index.derived.heads("margin"))
    assert verify_index(index.path) == []


@pytest.mark.parametrize("name", SKETCHES)
def test_a_poor_basis_costs_nothing_but_length(name):
    sketches, basis = SKETCHES[name], np.linalg.qr(np.random.default_rng(9).standard_normal((DIM, 10)))[0].T
    encoded = encode_heads(torch.from_numpy(sketches), torch.from_numpy(basis))
    assert_bounds(sketches, Heads(basis, *(values.numpy() for values in encoded)))


@pytest.mark.parametrize("stretch", [0.0, 4e-13, -4e-13])
@pytest.mark.parametrize("name", SKETCHES)
def test_errors_and_tails_bound_the_lengths_in_exact_arithmetic(name, stretch):
    rows, dim, count = 5, 24, 3
    sketches = SKETCHES[name][:rows, :dim].copy()
    basis = leading_directions(torch.from_numpy(SKETCHES["decaying"][:, :dim]).float(), count) * (1 + stretch)
    sketches[1] = (basis[0] + basis[2]).numpy() * 3.0  # no tail at all, up to rounding
    projected = project(torch.from_numpy(sketches), basis, 1.0)
    encoded = encode_heads(torch.from_numpy(sketches), basis)
    least = least_errors(projected, encoded.codes, encoded.scales)
    exact_basis = [[Fraction(value) for value in row] for row in basis.tolist()]
    for n, row in enumerate(sketches.tolist()):
        phi = [Fraction(value) for value in row]
        head = [sum(b * p for b, p in zip(direction, phi, strict=True)) for direction in exact_basis]
        back = [sum(h * exact_basis[i][j] for i, h in enumerate(head)) for j in range(dim)]
        tail = sum((p - b) ** 2 for p, b in zip(phi, back, strict=True))
        step = Fraction(float(encoded.scales[n]))
        lost = sum((h - step * int(code)) ** 2 for h, code in zip(head, encoded.codes[n].tolist(), strict=True))
        for bound in (projected.tails[n], encoded.tails[n]):
            assert tail <= Fraction(float(bound)) ** 2
        for bound in (least[n], encoded.errors[n]):
            assert lost <= Fraction(float(bound)) ** 2
        assert encoded.errors[n] >= least[n]
        length = float(sum(p * p for p in phi)) ** 0.5
        # 4 · 2⁻⁵² · 28 · (2 + √3) + 3 · 10⁻¹² is 10⁻¹³: what roundings and the basis are allowed is no more.
        assert float(encoded.errors[n]) <= float(lost) ** 0.5 * (1 + 1e-12) + 5e-12 * length + 1e-140
        assert float(encoded.tails[n]) <= (float(tail) + 5e-12 * length**2) ** 0.5 * (1 + 1e-12) + 1e-140


def test_directions_hold_nearly_what_the_best_do():
    sketches = decaying(500, DIM)
    directions = leading_directions(torch.from_numpy(sketches).float(), 10).numpy()
    best = np.square(np.linalg.svd(sketches, compute_uv=False)[:10]).sum()
    # Subspace iteration misses part of the last directions, whose singular values are close to the next.
    assert np.square(sketches @ directions.T).sum() >= 0.99 * best


@pytest.mark.parametrize("name", SKETCHES)
def test_directions_are_orthonormal_whatever_the_rank(name):
    unit = np.abs(SKETCHES[name]).max() or 1.0
    directions = leading_directions(torch.from_numpy(SKETCHES[name] / unit).float(), 10).numpy()
    assert np.abs(directions @ directions.T - np.eye(10)).max() <= 1e-14


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("rows", "dim"), [(60, 16), (7, 3), (1, 1), (33, 50), (3, 160)])
def test_stored_heads_are_those_of_every_row_in_every_shard(tmp_path, rows, dim, dtype, monkeypatch):
    monkeypatch.setattr("sketchstore.view.BLOCK_BYTES", 8 * dim * 10)  # blocks that straddle shards
    index = make_index(tmp_path, view="margin", num_rows=rows, dim=dim, dtype=dtype)
    done: list[int] = []
    path = build_heads(index, "margin", done.append)
    assert sum(done) == rows
    found = open_index(index.path).derived.heads("margin")
    expected = encode_heads(index.view("margin").sketches(slice(None)), torch.from_numpy(found.basis))
    assert (found.codes.dtype, found.codes.shape) == (np.int8, (rows, head_dim(dim)))
    # Products in blocks of another size round otherwise, so a value between two codes may take either.
    assert np.abs(found.codes.astype(int) - expected.codes.numpy()).max() <= 1
    assert found.scales == pytest.approx(expected.scales.numpy(), rel=1e-12)
    assert found.errors == pytest.approx(expected.errors.numpy(), rel=1e-9)
    assert found.tails == pytest.approx(expected.tails.numpy(), rel=1e-6, abs=1e-4)  # the root of a difference
    assert all(values.flags.aligned for values in (found.basis, found.scales, found.errors, found.tails))
    assert heads_bytes(rows, dim) < path.stat().st_size < heads_bytes(rows, dim) + 576  # the header
    assert verify_index(index.path) == []


def test_heads_of_a_view_whose_labels_compare_hold_all_rows(tmp_path):
    index = make_index(tmp_path, view="own", dim=32)
    build_heads(index, "own")
    entry = index.derived.entry("heads", "own")
    assert (entry.partition, entry.rows, entry.options) == ("all", 60, {"bits": 8, "directions": 2})


def test_an_index_without_heads_says_how_to_get_them(tmp_path):
    index = make_index(tmp_path)
    with pytest.raises(MissingDerivedError, match="indexer derive"):
        index.derived.heads("own")
    with pytest.raises(UnknownViewError):
        build_heads(index, "margin")


def test_heads_of_other_sketches_are_stale(tmp_path):
    first, second = make_index(tmp_path / "a"), make_index(tmp_path / "b", seed=1)
    build_heads(first, "own")
    (first.path / "derived").rename(second.path / "derived")
    with pytest.raises(StaleDerivedError, match="indexer derive"):
        second.derived.heads("own")
