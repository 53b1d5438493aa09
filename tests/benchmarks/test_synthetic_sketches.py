from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.synthetic_sketches import BLOCK_ROWS, VIEW, Spectrum, write_index


def drawn(spectrum: Spectrum, num_rows: int) -> np.ndarray:
    return np.concatenate(list(spectrum.blocks(num_rows)))


def test_a_smaller_index_is_the_beginning_of_a_larger_one() -> None:
    spectrum = Spectrum(8, 0.6)
    large = drawn(spectrum, BLOCK_ROWS + 50)
    assert np.array_equal(drawn(spectrum, 100), large[:100])
    assert np.array_equal(drawn(spectrum, BLOCK_ROWS + 10), large[: BLOCK_ROWS + 10])
    assert not np.array_equal(large[:50], large[BLOCK_ROWS:])


@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
def test_the_spectrum_decays_as_stated(decay: float) -> None:
    rows = drawn(Spectrum(32, decay), 8 * BLOCK_ROWS).astype(np.float64)
    found = np.sqrt(np.linalg.eigvalsh(rows.T @ rows)[::-1])
    expected = np.arange(1, 33) ** -decay
    # Eigenvalues of a sample: 1,000 clusters hold half of z, so each direction's variance scatters by about 3 %, and
    # where the spectrum is flat the sorting spreads that out.
    np.testing.assert_allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected), rtol=0.2)


def test_rows_have_mean_squared_norm_of_the_stated_lognormal() -> None:
    rows = drawn(Spectrum(16, 0.3), 4 * BLOCK_ROWS).astype(np.float64)
    # E[e^(0.6 g)] = e^0.18; the clusters' share of the mean scatters by a few percent.
    assert (rows**2).sum(axis=1).mean() == pytest.approx(np.exp(0.18), rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_directory_holds_what_was_drawn(tmp_path: Path, dtype: str) -> None:
    spectrum = Spectrum(8, 0.6)
    index = write_index(tmp_path / "synthetic", spectrum, 200, num_queries=3, dtype=dtype)  # type: ignore[arg-type]
    stored = index.view(VIEW).sketches(slice(0, None), torch.float32).numpy()
    # float16 keeps 11 bits of a value; subnormal ones lose no more than the smallest of them.
    np.testing.assert_allclose(stored, drawn(spectrum, 200), rtol=0 if dtype == "float32" else 2**-11, atol=1e-6)
    assert index.queries is not None
    assert index.queries.count == 3
    assert not np.isin(index.queries.sketch(0, VIEW, -1).numpy(), stored).any()
