import pytest
import torch

from attribution import spectral_filter as plain
from attribution.exact_sums import inner_product_error
from indexer.attributor import compiled_filter as compiled


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


#: One eigenvector, fewer than go together, a chunk, and chunks with a rest that is not a multiple of four.
SIZES = [1, 3, 512, 1030]


@pytest.mark.parametrize("size", SIZES)
def test_the_compiled_filter_is_its_plain_twin_up_to_rounding(generator, size):
    vectors = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q.contiguous()
    weights = torch.rand(size, generator=generator, dtype=torch.float64)
    weights[0] = 0.0  # a direction of which T has nothing
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    rotated, filtered = compiled.spectral_filter(vectors, weights, values)
    expected_rotated, expected = plain.spectral_filter(vectors, weights, values)
    # Unit vectors and weights up to 1: two inner products of the vector's length either way.
    within = 2 * inner_product_error(size, torch.float64) * float(torch.linalg.vector_norm(values))
    assert float((rotated - expected_rotated).abs().max()) <= within
    assert float((filtered - expected).abs().max()) <= 4 * within
    dense = vectors.T @ (weights * (vectors @ values))
    assert float((filtered - dense).abs().max()) <= 4 * within


@pytest.mark.parametrize("size", SIZES)
def test_its_bits_do_not_depend_on_the_number_of_threads(generator, monkeypatch, size):
    vectors = torch.randn(size, size, generator=generator, dtype=torch.float64)
    weights, values = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    found = []
    for cores in (1, 3):
        monkeypatch.setattr("attribution.cores._limits", [cores])
        found.append(compiled.spectral_filter(vectors, weights, values))
    for alone, together in zip(*found, strict=True):
        assert torch.equal(alone, together)
