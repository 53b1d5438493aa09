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
    values = torch.randn(3, size, generator=generator, dtype=torch.float64)
    rotated, filtered = compiled.spectral_filter(vectors, weights, values)
    expected_rotated, expected = plain.spectral_filter(vectors, weights, values)
    # Unit vectors and weights up to 1: two inner products of the vector's length either way.
    within = 2 * inner_product_error(size, torch.float64) * float(torch.linalg.vector_norm(values, dim=1).max())
    assert float((rotated - expected_rotated).abs().max()) <= within
    assert float((filtered - expected).abs().max()) <= 4 * within
    dense = vectors.T @ (weights[:, None] * (vectors @ values.T))
    assert float((filtered - dense.T).abs().max()) <= 4 * within


@pytest.mark.parametrize("size", SIZES)
def test_its_bits_do_not_depend_on_the_number_of_threads(generator, monkeypatch, size):
    vectors = torch.randn(size, size, generator=generator, dtype=torch.float64)
    weights = torch.randn(size, generator=generator, dtype=torch.float64)
    values = torch.randn(2, size, generator=generator, dtype=torch.float64)
    found = []
    for cores in (1, 3):
        monkeypatch.setattr("attribution.cores._limits", [cores])
        found.append(compiled.spectral_filter(vectors, weights, values))
    for alone, together in zip(*found, strict=True):
        assert torch.equal(alone, together)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("filtered", [plain.spectral_filter, compiled.spectral_filter])
def test_its_bits_do_not_depend_on_what_is_multiplied_beside(generator, filtered, size):
    vectors = torch.randn(size, size, generator=generator, dtype=torch.float64)
    weights = torch.randn(size, generator=generator, dtype=torch.float64)
    values = torch.randn(5, size, generator=generator, dtype=torch.float64)
    for place, value in enumerate(values):
        alone = filtered(vectors, weights, value.unsqueeze(0))
        for together, one in zip(filtered(vectors, weights, values), alone, strict=True):
            assert torch.equal(together[place], one[0])
