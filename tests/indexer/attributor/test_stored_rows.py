from pathlib import Path

import numpy as np
import pytest
import torch

from indexer.attributor.stored_rows import StoredRows, _copy_half, _products_half
from sketchstore.errors import UnknownRowError
from sketchstore.view import View
from tests.index_factory import make_index


@pytest.fixture(scope="module", params=["float16", "float32"])
def view(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> View:
    index = make_index(tmp_path_factory.mktemp("rows"), num_rows=70, dim=1500, shard_rows=32, dtype=request.param)
    return index.view("own")


def some_rows() -> torch.Tensor:
    return torch.tensor([69, 0, 33, 31, 32, 64, 0, 5])


def test_rows_are_read_exactly_in_any_order_across_shards(view: View) -> None:
    stored = StoredRows(view)
    assert view.num_shards > 1
    for rows in (some_rows(), torch.arange(70), torch.arange(3), torch.empty(0, dtype=torch.int64)):
        assert torch.equal(stored.sketches(rows), view.sketches(rows))
        assert torch.equal(stored.read(rows, torch.float32), view.sketches(rows, torch.float32))


def test_products_are_within_float64_rounding(view: View) -> None:
    stored = StoredRows(view)
    vector = torch.randn(1500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = some_rows()
    sketches = view.sketches(rows)
    bound = 1500 * 2.0**-53 * sketches.norm(dim=1) * vector.norm()
    assert bool(((stored.products(rows, vector) - sketches @ vector).abs() <= 2 * bound).all())


@pytest.mark.parametrize("length", [1.0, 1e-30, 1e30])
def test_nominating_products_are_within_their_bound(view: View, length: float) -> None:
    stored = StoredRows(view)
    vectors = length * torch.randn(3, 1500, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    vectors[2] = 0.0
    rows = some_rows()
    sketches = view.sketches(rows)
    off = (stored.nominating_products(rows, vectors) - vectors @ sketches.T).abs()
    # The float64 products compared with are themselves rounded, within a share of the bound that is spare.
    assert bool((off <= stored.nominating_error * vectors.norm(dim=1)[:, None] * sketches.norm(dim=1)).all())
    assert stored.nominating_error < 1e-5


def test_sums_that_float32_cancels_keep_their_bound(tmp_path: Path) -> None:
    # Large values of either sign, and a small one that float32 loses beside them.
    values = np.full((4, 256), 1e4, np.float32)
    values[:, 1::2] *= -1
    values[:, 100] += np.arange(4, dtype=np.float32) / 16
    index = make_index(tmp_path, num_rows=4, dim=256, dtype="float32", view="margin", sketches={"margin": values})
    stored = StoredRows(index.view("margin"))
    vectors = torch.rand(2, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    exact = vectors @ torch.from_numpy(values).double().T
    off = (stored.nominating_products(torch.arange(4), vectors) - exact).abs()
    norms = vectors.norm(dim=1)[:, None] * torch.from_numpy(values).double().norm(dim=1)
    assert bool((off <= stored.nominating_error * norms).all())
    assert float(off.max()) > 0, "float32 rounds"


@pytest.mark.parametrize("method", ["products", "nominating_products"])
def test_a_product_depends_on_its_row_and_vector_alone(view: View, method: str) -> None:
    stored, rows = StoredRows(view), torch.arange(70)
    multiply = getattr(stored, method)
    vectors = torch.randn(3, 1500, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    together = multiply(rows, vectors)
    for place in range(3):
        assert torch.equal(multiply(rows, vectors[place : place + 1])[0], together[place])
    for first in (1, 2, 3, 69):  # another place among the four that a kernel multiplies at a time
        assert torch.equal(multiply(rows[first:], vectors), together[:, first:])


def test_a_product_depends_on_its_row_alone(view: View) -> None:
    stored = StoredRows(view)
    vector = torch.randn(1500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = stored.products(torch.arange(70), vector)
    for row in (0, 31, 32, 69):
        assert torch.equal(stored.products(torch.tensor([row]), vector), together[row : row + 1])
    for first in (1, 2, 3):  # another place among the four that a kernel multiplies at a time
        assert torch.equal(stored.products(torch.arange(first, 70), vector), together[first:])


def test_several_vectors_are_multiplied_as_each_alone(view: View) -> None:
    stored = StoredRows(view)
    vectors = torch.randn(5, 1500, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rows = some_rows()
    together = stored.products(rows, vectors)
    assert torch.equal(together, torch.stack([stored.products(rows, vector) for vector in vectors]))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_products_and_copies_are_the_same_on_any_number_of_threads(tmp_path: Path, dtype: str) -> None:
    index = make_index(tmp_path, num_rows=1100, dim=40, dtype=dtype)  # enough rows for four threads to share
    stored, rows = StoredRows(index.view("own")), torch.arange(1100)
    vectors = torch.randn(2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            products, nominating = stored.products(rows, vectors), stored.nominating_products(rows, vectors)
            found.append((products, nominating, stored.sketches(rows)))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(other, first) for other, first in zip(others, found[0], strict=True))


def test_every_float16_value_is_widened_exactly() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    bits = bits[np.isfinite(bits.view(np.float16))].reshape(-1, 16)
    out = np.empty(bits.shape)
    _copy_half(bits, np.arange(bits.shape[0]), 0.25, out, 0, bits.shape[0])
    np.testing.assert_array_equal(out, bits.view(np.float16).astype(np.float64) * 0.25)


def test_products_are_the_same_where_subnormals_are_flushed_to_zero(view: View) -> None:
    stored = StoredRows(view)
    vector = torch.randn(1500, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    plain = stored.products(torch.arange(70), vector)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no mode that flushes subnormals to zero")
    try:
        flushed = stored.products(torch.arange(70), vector)
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(flushed, plain, rtol=1e-12, atol=1e-10)


def test_subnormal_float16_values_count_in_products() -> None:
    bits = np.arange(1, 1024, dtype=np.uint16).reshape(1, -1)  # every positive subnormal
    out = np.empty((1, 1))
    expected = bits.view(np.float16).astype(np.float64).sum()
    for subnormal in (np.array([1], np.uint32).view(np.float32), np.zeros(1, np.float32)):  # zero: as if flushed
        _products_half(bits, np.array([0]), np.ones((1, 1023)), 1.0, out, subnormal, 0, 1)
        assert out[0, 0] == expected


def test_a_row_outside_the_view_is_refused(view: View) -> None:
    for row in (-1, 70):
        with pytest.raises(UnknownRowError):
            StoredRows(view).sketches(torch.tensor([row]))
