import faiss
import numpy as np
import pytest
import torch

from benchmarks.literal_loop import compare_picks, flat_index, literal_loops, residual, rows_of
from indexer.attributor import Attributor, Question
from sketchstore.reader import Index
from tests import oracles

BUDGET = 12


def queries(index: Index, count: int) -> list[np.ndarray]:
    attributor = Attributor(index)
    return [attributor.resolve_query_row(row).sketch.numpy() for row in range(count)]


def test_flat_index_holds_the_stored_rows_without_a_second_copy(small_index: Index) -> None:
    flat = flat_index(small_index.view("margin"))
    rows = rows_of(flat)
    assert torch.equal(rows, small_index.view("margin").sketches(slice(0, None), torch.float32))
    rows[3, 0] = 17.0
    assert flat.reconstruct(3)[0] == 17.0


def test_residual_is_that_of_the_dense_oracle(small_index: Index) -> None:
    query = queries(small_index, 1)[0]
    acquired = small_index.view("margin").sketches(slice(0, 5))
    expected = oracles.residual(torch.from_numpy(query), acquired, 0.3)
    # One solve with 5 rows at noise 0.3 against one with d × d: both within a few hundred roundings.
    np.testing.assert_allclose(residual(query, acquired.numpy(), 0.3), expected.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("relative_noise", [0.01, 1.0, 1000.0])
def test_literal_loop_picks_what_the_dense_oracle_and_the_certified_strategy_pick(
    small_index: Index, relative_noise: float
) -> None:
    view = small_index.view("margin")
    flat = flat_index(view)
    noise = relative_noise * view.mean_squared_norm()
    attributor = Attributor(small_index)
    asked = queries(small_index, 4)
    batched = literal_loops(flat, asked, noise, BUDGET)
    for row, (query, picks) in enumerate(zip(asked, batched, strict=True)):
        assert literal_loops(flat, [query], noise, BUDGET) == [picks]
        dense = oracles.greedy_approx(torch.from_numpy(query), view.sketches(slice(0, None)), noise, BUDGET)
        answer = attributor.answer(Question(attributor.resolve_query_row(row), budget=BUDGET, noise_variance=noise))
        certified = [hit.row for hit in answer.hits]
        assert compare_picks(flat, query, noise, certified, picks).same
        assert compare_picks(flat, query, noise, dense, picks).same
        assert certified == dense


def test_the_loop_can_begin_from_picks(small_index: Index) -> None:
    flat, query = flat_index(small_index.view("margin")), queries(small_index, 1)[0]
    whole = literal_loops(flat, [query], 1.0, BUDGET)[0]
    assert literal_loops(flat, [query], 1.0, BUDGET, [whole[:5]])[0] == whole


def test_the_loop_selects_every_row_once_where_the_budget_is_the_whole_index() -> None:
    flat = faiss.IndexFlatIP(3)
    flat.add(np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32))
    assert sorted(literal_loops(flat, [np.ones(3)], 0.1, 7)[0]) == list(range(7))


def close_pair() -> tuple[faiss.IndexFlatIP, np.ndarray]:
    """Rows 0 and 1 are equal but for a last bit that the query does not see in float32; row 1 is better in float64."""
    rows = np.zeros((4, 2), np.float32)
    rows[0], rows[1] = (1.0, 1.0), (1.0, 1.0 + 2**-23)
    rows[2], rows[3] = (0.5, 0.0), (0.0, 0.25)
    flat = faiss.IndexFlatIP(2)
    flat.add(rows)
    return flat, np.array([1.0, 2.0**-4])


def test_a_rounding_tie_is_decided_by_float64_and_counted() -> None:
    flat, query = close_pair()
    better = [1, *literal_loops(flat, [query], 1.0, 3, [[1]])[0][1:]]
    worse = [0, *literal_loops(flat, [query], 1.0, 3, [[0]])[0][1:]]
    found = compare_picks(flat, query, 1.0, better, worse)
    assert found.same
    assert found.rounding_ties >= 1
    assert not compare_picks(flat, query, 1.0, worse, better).same


def test_another_pick_is_no_rounding_tie() -> None:
    flat, query = close_pair()
    picks = literal_loops(flat, [query], 1.0, 3)[0]
    assert compare_picks(flat, query, 1.0, picks, picks).same
    assert not compare_picks(flat, query, 1.0, [2, *picks[1:]], picks).same
    assert not compare_picks(flat, query, 1.0, picks[:2], picks).same
