import numpy as np
import pytest
import torch

from attribution.candidates import DenseCandidates
from attribution.exact_sums import inner_product_error
from attribution.infogain import select_infogain
from indexer.attributor.coded_rows import CodeScans
from indexer.attributor.rounded_pool import RoundedPool
from indexer.attributor.scan_rounds import scan_rounds
from sketchstore.codes import Codes, encode

NUM_ROWS, DIM = 300, 70


@pytest.fixture(scope="module")
def sketches():
    rows = torch.randn(NUM_ROWS, DIM, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    rows *= torch.logspace(0, -2, DIM)
    rows[5], rows[6], rows[8] = 0.0, 1e-20 * rows[7], rows[9]
    return rows


@pytest.fixture(scope="module")
def encoded(sketches):
    return Codes(*(part.numpy() for part in encode(sketches)))


def pool_of(encoded, sketches, rows):
    norms = torch.linalg.vector_norm(sketches[rows], dim=1).numpy()
    return RoundedPool(CodeScans(encoded, scan_rounds()), rows, norms)


@pytest.mark.parametrize("rows", [np.arange(NUM_ROWS), np.arange(3, NUM_ROWS, 7)], ids=["all", "some"])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_products_are_those_of_the_rounded_rows_with_the_vector_that_was_multiplied(encoded, sketches, rows, size):
    pool = pool_of(encoded, sketches, rows)
    rounded = encoded.codes[rows] * encoded.scales[rows, None]
    lengths = np.linalg.norm(rounded, axis=1)
    assert np.allclose(pool.rounded_norms, lengths, rtol=1e-14, atol=0)
    assert (np.linalg.norm(sketches[rows].numpy() - rounded, axis=1) <= pool.distances).all()
    assert (np.linalg.norm(sketches[rows].numpy(), axis=1) <= pool.norms).all()
    for seed in range(5):
        vector = size * np.random.default_rng(seed).standard_normal(DIM)
        found = pool.rounded_products(vector)
        # A step of 2^-15 of the largest value or so, in every value at most half of one.
        assert np.abs(found.vector - vector).max() <= np.abs(vector).max() / 2**14
        within = inner_product_error(DIM, torch.float64) * lengths * np.linalg.norm(found.vector)
        assert (np.abs(found.values - rounded @ found.vector) <= within).all()
    assert pool.scans == 5
    assert pool.bytes_read == 5 * rows.shape[0] * DIM


@pytest.mark.parametrize("noise", [1e-3, 1.0, 1e3])
def test_infogain_by_codes_makes_the_same_steps(encoded, sketches, noise):
    query = sketches[9] + 0.1 * sketches[20]
    candidates = DenseCandidates(sketches)
    plain = list(select_infogain(query, candidates, noise, budget=12))
    pool = pool_of(encoded, sketches, np.arange(NUM_ROWS))
    assert list(select_infogain(query, candidates, noise, budget=12, rounded=pool)) == plain
    assert pool.scans == 12  # the query, and every pick but the last
