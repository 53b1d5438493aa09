import pytest
import torch

from attribution.exact_sums import inner_product, inner_product_error, inner_products, squared_norms, weighted_sum


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dim", [1, 3, 12, 100, 1000, 4095, 4096, 4097, 20_480, 40_000])
def test_a_row_sums_to_the_same_bits_alone_in_a_batch_and_on_any_thread_count(dim, generator, threads):
    rows = torch.randn(40, dim, generator=generator, dtype=torch.float64)
    vector = torch.randn(dim, generator=generator, dtype=torch.float64)
    torch.set_num_threads(1)
    products, norms = inner_products(rows, vector), squared_norms(rows)
    for count in (1, 2):
        torch.set_num_threads(count)
        assert torch.equal(inner_products(rows, vector), products)
        assert torch.equal(inner_products(rows.T.contiguous().T, vector), products), "strides changed the order"
        for size in (1, 2, 3, 7, 17):
            for start in (0, 1, 20):
                part = slice(start, start + size)
                assert torch.equal(inner_products(rows[part], vector), products[part])
                assert torch.equal(squared_norms(rows[part]), norms[part])


def test_weighted_sums_have_the_same_bits_on_any_thread_count(generator, threads):
    rows = torch.randn(60, 5000, generator=generator, dtype=torch.float64)
    weights = torch.randn(60, generator=generator, dtype=torch.float64)
    sums = []
    for count in (1, 2):
        torch.set_num_threads(count)
        sums.append(weighted_sum(rows, weights))
    assert torch.equal(*sums)


def test_sums_agree_with_torch(generator):
    rows = torch.randn(50, 3000, generator=generator, dtype=torch.float64)
    vector = torch.randn(3000, generator=generator, dtype=torch.float64)
    # Two orders of a float64 sum of 3,000 terms of size 1: far below 1e-10.
    torch.testing.assert_close(inner_products(rows, vector), rows @ vector, rtol=0, atol=1e-10)
    torch.testing.assert_close(weighted_sum(rows, vector[:50]), rows.T @ vector[:50], rtol=0, atol=1e-10)
    assert inner_product(vector, vector) == float(squared_norms(vector.unsqueeze(0)))


def test_sums_of_nothing_are_zero():
    assert inner_products(torch.zeros(0, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)).shape == (0,)
    empty = weighted_sum(torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))
    assert torch.equal(empty, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [3, 64, 4096])
def test_products_stay_within_their_error_bound(dim, dtype, generator):
    rows = torch.randn(200, dim, generator=generator, dtype=torch.float64)
    # Nearly parallel to the first row with alternating signs: sums that cancel.
    vector = rows[0] * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(dim)[:dim]
    exact = torch.tensor([float(sum((r * vector).tolist())) for r in rows], dtype=torch.float64)
    fast = (rows.to(dtype) @ vector.to(dtype)).double()
    allowed = inner_product_error(dim, dtype) * rows.norm(dim=1) * vector.norm()
    # The reference is itself summed in float64, with its own error of the float64 bound.
    slack = inner_product_error(dim, torch.float64) * rows.norm(dim=1) * vector.norm()
    assert bool(((fast - exact).abs() <= allowed + slack).all())


def test_no_bound_is_promised_beyond_the_precision_of_the_type():
    assert inner_product_error(2**24, torch.float32) == float("inf")
