"""The comparison with the traker package, as far as it runs without the package."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.trak_agreement import package_scores, rank_correlations, service_scores, unregularised_scores
from indexer.attributor import Attributor
from tests import oracles
from tests.indexer.attributor.asking import small_index


def test_rank_correlation_is_of_ranks():
    scores = np.array([[0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]])
    assert rank_correlations(scores, np.exp(scores)) == pytest.approx([1.0, 1.0])
    assert rank_correlations(scores, -scores) == pytest.approx([-1.0, -1.0])
    # Spearman's 1 − 6 Σd²/(n(n² − 1)) for one swap of neighbours.
    assert rank_correlations(scores[:1], np.array([[1.0, 3.0, 2.0, 4.0]])) == pytest.approx([1 - 6 * 2 / 60])


def test_the_index_ranks_as_the_package_s_formula(tmp_path: Path):
    attributor = Attributor(small_index(tmp_path, view="margin", dim=24))
    ours, noise = service_scores(attributor, [0, 1, 2], 1.0)
    rows = attributor.index.view("margin").sketches(slice(0, 120))
    one_minus_p = attributor.index.column("one_minus_p")
    for row, scores in enumerate(ours):
        query = attributor.resolve_query_row(row).sketch[None]
        theirs = oracles.traker_scores(query, rows, one_minus_p, noise).numpy()
        assert rank_correlations(scores[None], theirs)[0] > 0.9999


def test_rows_that_do_not_span_the_dimensions_have_no_scores_without_regularisation(tmp_path: Path, capfd):
    index = small_index(tmp_path, view="margin", dim=24)
    rows, one_minus_p = index.view("margin").sketches(slice(0, 120)).double(), index.column("one_minus_p").double()
    whole = unregularised_scores(rows[:2], rows, one_minus_p)
    expected = one_minus_p * (rows[:2] @ torch.linalg.inv(rows.T @ rows) @ rows.T)
    np.testing.assert_allclose(whole, expected.numpy(), rtol=1e-7, atol=1e-10)
    deficient = rows.clone()
    deficient[:, 20:] = deficient[:, :4]  # more rows than dimensions, of rank 20
    assert unregularised_scores(deficient[:2], deficient, one_minus_p) is None
    assert unregularised_scores(rows[:2], rows[:10], one_minus_p[:10]) is None
    assert "λ = 0 has no answer: 120 rows do not span 24 dimensions" in "".join(capfd.readouterr())


def test_the_package_ranks_as_its_formula(tmp_path: Path):
    pytest.importorskip("trak", reason="the traker package lives in an environment of its own")
    index = small_index(tmp_path, view="margin", dim=24)
    rows, one_minus_p = index.view("margin").sketches(slice(0, 120)), index.column("one_minus_p")
    found = package_scores(rows.float(), one_minus_p.float(), rows[:4].float(), 1.0)
    wanted = oracles.traker_scores(rows[:4], rows, one_minus_p, 1.0).numpy()
    assert min(rank_correlations(found, wanted)) > 0.9999
