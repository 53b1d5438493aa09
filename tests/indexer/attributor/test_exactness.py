import concurrent.futures
from pathlib import Path

import pytest
import torch

from indexer.attributor import Attributor, CandidateFilter, Question
from tests import oracles
from tests.indexer.attributor.asking import METHODS, RELATIVE_NOISES, attributor, close, comparable, greedy, small_index

#: Whole builds and dense oracles: left out of `make check`.
pytestmark = pytest.mark.slow

BUDGET = 6


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Attributor]:
    def path(name: str) -> Path:
        return tmp_path_factory.mktemp(name)

    return {
        "kernel form, stored": attributor(path("a")),
        "kernel form, computed": attributor(path("b"), spectra=False),
        "gram form, stored": attributor(path("c"), dim=12),
        "gram form, computed, float32": attributor(path("d"), dim=12, spectra=False, dtype="float32"),
        "brute force": attributor(path("e"), engine="brute_force", faiss=None),
        "one view per class": attributor(path("f"), view="class", num_rows=60),
        "margin, gram form": attributor(path("g"), view="margin", num_rows=60, dim=16),
    }


CASES = [
    "kernel form, stored",
    "kernel form, computed",
    "gram form, stored",
    "gram form, computed, float32",
    "brute force",
    "one view per class",
    "margin, gram form",
]


@pytest.mark.parametrize("relative_noise", RELATIVE_NOISES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_picks_and_nats_equal_the_float64_oracle(
    indexes: dict[str, Attributor], case: str, method: str, relative_noise: float
) -> None:
    asked = indexes[case]
    for row in (1, 3):
        query = asked.resolve_query_row(row)
        rows, sketches = comparable(asked.index, query)
        answer = asked.answer(Question(query, method, BUDGET, relative_noise=relative_noise))
        noise = answer.noise_variance
        assert noise == pytest.approx(relative_noise * float((sketches**2).sum(dim=1).mean()), rel=1e-12)
        picks = greedy(method, query.sketch, sketches, list(range(len(rows))), noise, BUDGET)
        assert [hit.row for hit in answer.hits] == rows[picks].tolist()
        for rank, hit in enumerate(answer.hits, start=1):
            assert hit.rank == rank
            chosen = sketches[picks[:rank]]
            expected = (
                oracles.info_loss(query.sketch, sketches, picks[:rank], noise)
                if method == "infoloss"
                else oracles.info_gain(query.sketch, chosen, noise)
            )
            assert close(hit.cumulative_nats, expected)
        information = answer.information
        gained = oracles.info_gain(query.sketch, sketches[picks], noise)
        available = oracles.info_gain(query.sketch, sketches, noise)
        assert close(information.infogain_nats, gained)
        assert close(information.infoloss_nats, oracles.info_loss(query.sketch, sketches, picks, noise))
        assert close(information.available_nats, available)
        assert close(information.fraction, gained / available)
        assert close(answer.query.prior_variance, float(query.sketch @ query.sketch))
        assert close(
            answer.query.posterior_variance, oracles.query_variance(query.sketch, sketches[picks], noise), 1e-7
        )
        assert answer.search.exact


@pytest.mark.parametrize("case", CASES)
def test_literal_and_certified_pick_the_same(indexes: dict[str, Attributor], case: str) -> None:
    asked = indexes[case]
    query = asked.resolve_query_row(1)
    certified, literal = (
        asked.answer(Question(query, budget=BUDGET, relative_noise=0.1, strategy=strategy))
        for strategy in ("certified", "literal")
    )
    assert [hit.row for hit in certified.hits] == [hit.row for hit in literal.hits]
    assert certified.information == literal.information
    assert certified.search.index_queries < literal.search.index_queries
    assert literal.search.index_queries >= 2 * BUDGET
    assert (certified.search.strategy, literal.search.strategy) == ("certified", "literal")
    assert certified.search.rows_scored > 0


def test_covariance_is_signed_as_the_oracle_has_it(indexes: dict[str, Attributor]) -> None:
    asked = indexes["kernel form, stored"]
    query = asked.resolve_query_row(2)
    rows, sketches = comparable(asked.index, query)
    answer = asked.answer(Question(query, budget=BUDGET, relative_noise=1.0))
    taken: list[int] = []
    for hit in answer.hits:
        place = int((rows == hit.row).nonzero())
        expected = oracles.covariance(
            query.sketch.unsqueeze(0), sketches[[place]], sketches[taken], answer.noise_variance
        )
        assert close(hit.covariance, float(expected), 1e-7)
        assert close(hit.score, hit.covariance**2)
        taken.append(place)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", ["kernel form, stored", "kernel form, computed", "gram form, stored"])
def test_excluded_ids_leave_the_candidates_and_d(indexes: dict[str, Attributor], case: str, method: str) -> None:
    asked = indexes[case]
    query = asked.resolve_query_row(1)
    rows, sketches = comparable(asked.index, query)
    first = asked.answer(Question(query, method, 5, relative_noise=0.1))
    gone = tuple(hit.id for hit in first.hits[:3])
    kept = [place for place, row in enumerate(rows.tolist()) if f"train:{row}" not in gone]
    answer = asked.answer(
        Question(query, method, 5, relative_noise=0.1, filter=CandidateFilter(exclude_ids=[*gone, "train:0"]))
    )
    kept = [place for place in kept if int(rows[place]) != 0]
    noise = answer.noise_variance
    picks = greedy(method, query.sketch, sketches[kept], list(range(len(kept))), noise, 5)
    assert [hit.row for hit in answer.hits] == rows[kept][picks].tolist()
    assert close(answer.information.available_nats, oracles.info_gain(query.sketch, sketches[kept], noise))
    assert close(answer.information.infoloss_nats, oracles.info_loss(query.sketch, sketches[kept], picks, noise))


@pytest.mark.parametrize("include_self", [False, True])
def test_a_training_query_leaves_d_unless_it_is_included(indexes: dict[str, Attributor], include_self: bool) -> None:
    asked = indexes["kernel form, stored"]
    query = asked.resolve_train_id("train:17", include_self=include_self)
    rows, sketches = comparable(asked.index, query)
    answer = asked.answer(Question(query, "infogain", 4, relative_noise=0.1))
    assert (17 in [hit.row for hit in answer.hits]) == include_self
    kept = sketches if include_self else sketches[rows != 17]
    expected = oracles.info_gain(query.sketch, kept, answer.noise_variance)
    assert close(answer.information.available_nats, expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_filter_limits_the_candidates_and_not_d(indexes: dict[str, Attributor], method: str) -> None:
    asked = indexes["kernel form, stored"]
    query = asked.resolve_query_row(1)
    rows, sketches = comparable(asked.index, query)
    pool = [place for place, row in enumerate(rows.tolist()) if row % 2]  # metadata source is "web" for odd rows
    answer = asked.answer(
        Question(query, method, 6, relative_noise=0.1, filter=CandidateFilter(where={"source": "web"}))
    )
    noise = answer.noise_variance
    picks = greedy(method, query.sketch, sketches, pool, noise, 6)
    assert [hit.row for hit in answer.hits] == rows[picks].tolist()
    assert close(answer.information.available_nats, oracles.info_gain(query.sketch, sketches, noise))
    assert close(answer.information.infoloss_nats, oracles.info_loss(query.sketch, sketches, picks, noise))


@pytest.mark.parametrize("method", METHODS)
def test_condition_pool_makes_the_candidates_d(indexes: dict[str, Attributor], method: str) -> None:
    asked = indexes["kernel form, stored"]
    query = asked.resolve_query_row(1)
    rows, sketches = comparable(asked.index, query)
    pool = sketches[(rows % 2 == 1)]
    rows = rows[rows % 2 == 1]
    question = Question(
        query, method, 6, relative_noise=0.1, filter=CandidateFilter(where={"source": "web"}), condition="pool"
    )
    answer = asked.answer(question)
    noise = answer.noise_variance
    picks = greedy(method, query.sketch, pool, list(range(len(rows))), noise, 6)
    assert [hit.row for hit in answer.hits] == rows[picks].tolist()
    assert close(answer.information.infoloss_nats, oracles.info_loss(query.sketch, pool, picks, noise))
    assert answer.information.available_nats is None
    assert answer.information.fraction is None
    assert "available true" in str(answer.information.available_reason)
    wanted = asked.answer(
        Question(
            query,
            method,
            6,
            noise_variance=noise,
            filter=CandidateFilter(where={"source": "web"}),
            condition="pool",
            available=True,
        )
    )
    assert close(wanted.information.available_nats, oracles.info_gain(query.sketch, pool, noise))
    assert wanted.information.available_reason is None


def test_with_one_view_per_class_labels_limit_the_candidates_and_d_is_every_row(
    indexes: dict[str, Attributor],
) -> None:
    asked = indexes["one view per class"]
    query = asked.resolve_query_row(1, 2)
    assert (query.view, query.label) == ("2", 2)
    rows, sketches = comparable(asked.index, query)
    assert len(rows) == asked.index.num_rows
    answer = asked.answer(Question(query, "infoloss", 5, relative_noise=0.1, filter=CandidateFilter(labels=[0, 1])))
    pool = (asked.index.labels <= 1).nonzero().squeeze(1).tolist()
    picks = greedy("infoloss", query.sketch, sketches, pool, answer.noise_variance, 5)
    assert [hit.row for hit in answer.hits] == picks
    assert {hit.label for hit in answer.hits} <= {0, 1}


def test_answers_do_not_depend_on_company(indexes: dict[str, Attributor], tmp_path: Path) -> None:
    asked = attributor(tmp_path)
    questions = [
        Question(asked.resolve_query_row(row), method, 6, relative_noise=noise)
        for row in range(6)
        for method in METHODS
        for noise in (0.1, 1.0)
    ]
    alone = [Attributor(asked.index).answer(question) for question in questions]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        together = list(threads.map(asked.answer, questions))
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        on_one_thread = [asked.answer(question) for question in questions]
    finally:
        torch.set_num_threads(threads_before)
    for one, two, three in zip(alone, together, on_one_thread, strict=True):
        assert one.hits == two.hits == three.hits
        assert one.information == two.information == three.information


def test_many_exclusions_are_decomposed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Attributor(small_index(tmp_path))
    query = asked.resolve_query_row(1)
    rows, sketches = comparable(asked.index, query)
    gone = [f"train:{row}" for row in rows[::2].tolist()]
    question = Question(query, "infoloss", 4, relative_noise=0.1, filter=CandidateFilter(exclude_ids=gone))
    one_by_one = asked.answer(question)
    monkeypatch.setattr("indexer.attributor.conditioning.MOST_REMOVED", 3)
    anew = asked.answer(question)
    assert [hit.row for hit in one_by_one.hits] == [hit.row for hit in anew.hits]
    kept = sketches[1::2]
    expected = oracles.info_gain(query.sketch, kept, anew.noise_variance)
    assert close(one_by_one.information.available_nats, expected)
    assert close(anew.information.available_nats, expected)
