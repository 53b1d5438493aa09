"""The fused table over stored rows does what the plain one does, on every storage type, shard and thread count."""

import numpy as np
import pytest
import torch

from attribution.covariance_table import DenseTable, table_bytes
from attribution.row_products import row_products as plain_products
from indexer.attributor.coreset import StoredCandidates
from indexer.attributor.fused_table import FusedTable, row_products
from tests.index_factory import make_index


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("chosen", ["all", "some"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_it_changes_and_sums_as_the_plain_table_does(tmp_path, dtype, chosen, generator):
    view = make_index(tmp_path, view="margin", num_rows=203, dim=24, dtype=dtype, shard_rows=64).view("margin")
    rows = torch.arange(203) if chosen == "all" else torch.tensor([0, 5, 63, 64, 65, 100, 128, 201, 202])
    fused, plain = FusedTable(view, rows, 10), DenseTable(StoredCandidates(view, rows), 10)
    vectors = torch.randn(10, 24, generator=generator, dtype=torch.float64)
    weights = torch.rand(10, generator=generator, dtype=torch.float64)
    for table in (fused, plain):
        table.fill(vectors)
    assert fused.values.nbytes == table_bytes(rows.numel(), 10)
    torch.testing.assert_close(fused.squares(weights), plain.squares(weights), rtol=1e-6, atol=0)
    for _ in range(3):
        direction = torch.randn(24, generator=generator, dtype=torch.float64)
        coefficients = torch.randn(10, generator=generator, dtype=torch.float64)
        found, expected = (table.advance(direction, coefficients, weights) for table in (fused, plain))
        # Column values are float64 sums of 24 products, in two orders.
        torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
        # Values of size 10 that change by as much, each rounded a few times by 6e-8 of that.
        torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=0)
        torch.testing.assert_close(fused.values, plain.values, rtol=0, atol=1e-5)
    squares = (fused.values.double() ** 2) @ weights
    torch.testing.assert_close(found[1], squares, rtol=2.0**-23, atol=0)


def test_products_that_decide_have_the_same_bits_alone_together_and_on_any_thread_count(threads, generator):
    rows = torch.randn(1030, 70, generator=generator, dtype=torch.float64).numpy()
    vectors = torch.randn(5, 33, generator=generator, dtype=torch.float64).numpy()
    torch.set_num_threads(1)
    products = row_products(rows, vectors)
    # Sums of 33 terms of size 1 in two orders.
    np.testing.assert_allclose(products, plain_products(rows, vectors), rtol=0, atol=1e-13)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert np.array_equal(row_products(rows, vectors), products)
        assert np.array_equal(row_products(rows, vectors[3:4])[0], products[3])
    single = rows.astype(np.float32)
    widened = row_products(single.astype(np.float64), vectors)
    np.testing.assert_allclose(row_products(single, vectors), widened, rtol=0, atol=1e-13)
    assert row_products(rows[:0], vectors).shape == (5, 0)
