"""TRAK, GradDot, RepSim and RelatIF from stored rows and columns: picks and scores of the dense formulas."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attribution import baselines
from indexer.attributor import Attributor, CandidateFilter, QuerySketch, Question
from indexer.attributor.baselines import BASELINES
from indexer.attributor.errors import MethodUnavailableError, NoRepresentationError
from sketchstore.reader import open_index
from sketchstore.remove import remove_rows
from tests import oracles
from tests.indexer.attributor.asking import attributor, small_index

FEATURES = 7


@pytest.fixture(scope="module", params=["kernel", "gram"])
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Attributor:
    """120 rows of margins in more or fewer dimensions, every row twice of some, one row zero."""
    dim = 160 if request.param == "kernel" else 24
    rng = np.random.default_rng(0)
    sketches = rng.standard_normal((120, dim)).astype(np.float32)
    sketches[[40, 90, 91]] = sketches[7]
    sketches[33] = 0
    probabilities = {"one_minus_p": np.where(np.isin(np.arange(120), [7, 40, 90, 91]), 0.5, rng.random(120))}
    return attributor(
        tmp_path_factory.mktemp("margins"),
        view="margin",
        sketches={"margin": sketches},
        columns=probabilities,
        representations=FEATURES,
    )


def dense(asked: Attributor, query: QuerySketch, method: str, noise: float, rows: list[int]) -> Tensor:
    """Scores of some rows given these rows, by the formulas of ``attribution.baselines``."""
    sketches = asked.index.view("margin").sketches(torch.tensor(rows))
    one_minus_p = asked.index.column("one_minus_p")[rows]
    match method:
        case "trak":
            return baselines.trak(query.sketch[None], sketches, one_minus_p, noise)[0]
        case "graddot":
            return baselines.graddot(query.sketch[None], sketches, one_minus_p)[0]
        case "repsim":
            assert query.representation is not None
            features = query.representation()
            assert features is not None
            return baselines.repsim(features[None], asked.index.column("representations")[rows])[0]
        case _:
            return baselines.relatif(query.sketch[None], sketches, noise)[0]


def assert_best(answer: Any, rows: list[int], scores: Tensor) -> None:
    """Hits are the rows with the largest scores, equal ones in ascending order."""
    order = sorted(range(len(rows)), key=lambda place: (-round(float(scores[place]), 10), rows[place]))
    assert [hit.row for hit in answer.hits] == [rows[place] for place in order[: len(answer.hits)]]
    # Both are float64 sums of at most 160 terms behind a solve of condition below 1e5.
    wanted = [float(scores[place]) for place in order[: len(answer.hits)]]
    assert [hit.score for hit in answer.hits] == pytest.approx(wanted, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("relative_noise", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("method", BASELINES)
def test_picks_and_scores_are_those_of_the_dense_formula(asked: Attributor, method: str, relative_noise: float) -> None:
    query = asked.resolve_query_row(2)
    answer = asked.answer(Question(query, method, 20, relative_noise=relative_noise))
    rows = list(range(120))
    assert_best(answer, rows, dense(asked, query, method, answer.noise_variance, rows))
    assert answer.search.engine == "none"
    assert answer.nats_criterion == "infogain"


def test_trak_of_the_index_is_the_package_s_up_to_scale(asked: Attributor) -> None:
    ids = [f"train:{row}" for row in range(120)]
    index = asked.index
    for row in range(3):
        query = asked.resolve_query_row(row)
        scores = asked.scores(query, ids, criteria=[], relative_noise=1.0, methods=["trak"])
        ours = torch.tensor([member.scores["trak"] for member in scores.members], dtype=torch.float64)
        rows = index.view("margin").sketches(torch.arange(120))
        theirs = oracles.traker_scores(query.sketch[None], rows, index.column("one_minus_p"), scores.noise_variance)[0]
        scale = ours @ theirs / (theirs @ theirs)
        assert scale > 0
        torch.testing.assert_close(ours, scale * theirs, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("method", BASELINES)
def test_the_nats_are_the_infogain_of_what_was_taken(asked: Attributor, method: str) -> None:
    query = asked.resolve_query_row(3)
    answer = asked.answer(Question(query, method, 6, relative_noise=1.0))
    taken = asked.index.view("margin").sketches(torch.tensor([hit.row for hit in answer.hits]))
    wanted = oracles.info_gain(query.sketch, taken, answer.noise_variance)
    assert answer.information.infogain_nats == pytest.approx(wanted, rel=1e-9)
    assert answer.hits[-1].cumulative_nats == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("method", ["trak", "relatif"])
def test_examples_left_out_leave_d_too(asked: Attributor, method: str) -> None:
    out = [5, 7, 60]
    query = asked.resolve_query_row(1)
    chosen = CandidateFilter(exclude_ids=[f"train:{row}" for row in out])
    answer = asked.answer(Question(query, method, 15, relative_noise=0.1, filter=chosen))
    rows = [row for row in range(120) if row not in out]
    assert_best(answer, rows, dense(asked, query, method, answer.noise_variance, rows))


@pytest.mark.parametrize("method", ["trak", "relatif"])
def test_a_filter_limits_the_candidates_and_not_d(asked: Attributor, method: str) -> None:
    query = asked.resolve_query_row(1)
    answer = asked.answer(Question(query, method, 10, relative_noise=1.0, filter=CandidateFilter(labels=[1])))
    rows = (asked.index.labels == 1).nonzero().flatten().tolist()
    scores = dense(asked, query, method, answer.noise_variance, list(range(120)))[rows]
    assert_best(answer, rows, scores)


@pytest.mark.parametrize("method", BASELINES)
def test_a_training_duplicate_of_the_query_scores_positive(asked: Attributor, method: str) -> None:
    query = asked.resolve_train_row(90, include_self=True)
    scores = asked.scores(query, ["train:90"], relative_noise=1.0, methods=[method])
    assert scores.members[0].scores[method] > 0


@pytest.mark.parametrize("method", ["trak", "graddot", "relatif"])  # of repsim's features none are equal
def test_equal_rows_tie_and_the_lowest_comes_first(asked: Attributor, method: str) -> None:
    query = asked.resolve_train_row(90, include_self=True)
    answer = asked.answer(Question(query, method, 120, relative_noise=1.0))
    twins = [hit for hit in answer.hits if hit.row in (7, 40, 90, 91)]
    assert [hit.row for hit in twins] == [7, 40, 90, 91]
    assert len({hit.score for hit in twins}) == 1


def test_scores_of_members_are_those_of_the_hits(asked: Attributor) -> None:
    query = asked.resolve_query_row(4)
    ids = [f"train:{row}" for row in (50, 3, 33)]
    scores = asked.scores(query, ids, relative_noise=1.0, methods=list(BASELINES))
    everything = {method: dense(asked, query, method, scores.noise_variance, list(range(120))) for method in BASELINES}
    for member in scores.members:
        wanted = {method: float(everything[method][member.row]) for method in BASELINES}
        assert member.scores == pytest.approx(wanted, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("purge", [False, True])
def test_rows_removed_take_their_columns_with_them(tmp_path: Path, purge: bool) -> None:
    index = small_index(tmp_path, view="margin", representations=FEATURES)
    before = Attributor(open_index(shutil.copytree(index.path, tmp_path / "before")))
    remove_rows(index, ["train:3", "train:70"], purge=purge)
    after = Attributor(open_index(index.path))
    left = [row for row in range(120) if row not in (3, 70)]
    query = after.resolve_query_row(1)
    for method in BASELINES:
        answer = after.answer(Question(query, method, 10, relative_noise=1.0))
        old = CandidateFilter(exclude_ids=["train:3", "train:70"])
        wanted = before.answer(
            Question(before.resolve_query_row(1), method, 10, noise_variance=answer.noise_variance, filter=old)
        )
        assert [hit.id for hit in answer.hits] == [hit.id for hit in wanted.hits]
        assert [hit.row for hit in answer.hits] == [left.index(hit.row) for hit in wanted.hits]


def test_an_index_lists_what_it_can_serve_and_says_what_it_lacks(tmp_path: Path) -> None:
    own = attributor(tmp_path / "own")
    assert own.methods == ("infogain_approx", "infogain", "infoloss", "relatif", "random")
    for method, what in (("trak", "--measurement margin"), ("graddot", "margins"), ("repsim", "representation(model")):
        with pytest.raises(MethodUnavailableError) as refused:
            own.answer(Question(own.resolve_query_row(1), method, 2))
        assert what in str(refused.value)
        assert refused.value.allowed == list(own.methods)
        with pytest.raises(MethodUnavailableError, match="not available"):
            own.scores(own.resolve_query_row(1), ["train:0"], methods=[method])


def test_a_query_without_features_is_refused_by_repsim_alone(asked: Attributor, tmp_path: Path) -> None:
    sketch = asked.resolve_sketch(torch.ones(asked.index.sketch_dim), 0)
    assert asked.answer(Question(sketch, "trak", 2)).hits
    with pytest.raises(NoRepresentationError, match="a sketch does not carry them"):
        asked.ask(Question(sketch, "repsim", 2))
    # What an earlier build wrote: features of the rows, none of the queries.
    rows = np.ones((120, FEATURES), np.float32)
    earlier = attributor(tmp_path, view="margin", columns={"representations": rows})
    assert earlier.answer(Question(earlier.resolve_train_row(3), "repsim", 2)).hits
    with pytest.raises(NoRepresentationError, match="build the index anew"):
        earlier.ask(Question(earlier.resolve_query_row(1), "repsim", 2))
