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
            found.append((stored.products(rows, vectors), stored.sketches(rows)))
    finally:
        torch.set_num_threads(before)
    for products, sketches in found[1:]:
        assert torch.equal(products, found[0][0])
        assert torch.equal(sketches, found[0][1])


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
