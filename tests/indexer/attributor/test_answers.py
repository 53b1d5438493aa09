from pathlib import Path

import numpy as np
import pytest

from indexer.attributor import Answer, Attributor, CandidateFilter, Hit, Question, Start
from indexer.attributor.errors import NoLabelError, NoTrueLabelError
from sketchstore.faiss_search import FaissSearch
from tests import oracles
from tests.index_factory import make_index
from tests.indexer.attributor.asking import METHODS, attributor, close, comparable, small_index


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Attributor:
    return attributor(tmp_path_factory.mktemp("own"))


def test_the_answer_echoes_what_was_asked(own: Attributor) -> None:
    query = own.resolve_query_row(3)
    answer = own.answer(Question(query, budget=4, noise_variance=2.0))
    assert (answer.index.name, answer.index.revision) == (own.index.name, own.index.revision)
    unit = own.index.view("own").mean_squared_norm(query.label)
    assert answer.noise_variance == 2.0
    assert answer.relative_noise == pytest.approx(2.0 / unit, rel=1e-14)
    assert (answer.method, answer.nats_criterion, answer.score_unit) == ("infogain_approx", "infogain", "measurement^4")
    assert (answer.query.label, answer.query.predicted_label) == (0, 0)
    assert (answer.stopped, answer.warnings) == ("budget", ())
    assert (answer.search.engine, answer.search.factory) == ("faiss", "Flat")
    assert set(answer.timings_ms) == {"prepare", "search", "select", "rescore", "represents", "total"}
    for hit in answer.hits:
        assert hit.id == f"train:{hit.row}"
        assert hit.label == int(own.index.labels[hit.row]) == 0


def test_the_true_label_is_a_target(own: Attributor) -> None:
    query = own.resolve_query_row(0, "true")
    assert (query.label, query.predicted_label) == (1, 0)
    assert own.resolve_query_row(0).label == own.resolve_query_row(0, "predicted").label == 0


def test_methods_that_ask_no_index_say_so(own: Attributor) -> None:
    units = {"infogain": "measurement^2", "infoloss": "measurement^2", "random": "1"}
    for method, unit in units.items():
        answer = own.answer(Question(own.resolve_query_row(1), method, 3, relative_noise=1.0))
        assert (answer.search.engine, answer.search.factory, answer.search.strategy) == ("none", None, None)
        assert (answer.search.exact, answer.search.index_queries) == (True, 0)
        assert answer.search.rows_scored > 0
        assert answer.score_unit == unit
        assert answer.nats_criterion == ("infoloss" if method == "infoloss" else "infogain")


def test_an_untuned_noise_is_a_warning_and_a_tuned_one_is_not(own: Attributor, tmp_path: Path) -> None:
    untuned = own.answer(Question(own.resolve_query_row(1), budget=2))
    assert untuned.relative_noise == 1.0
    assert len(untuned.warnings) == 1
    assert "untuned" in untuned.warnings[0]
    tuned = Attributor(make_index(tmp_path, default_relative_noise=3.5), engine="brute_force")
    answer = tuned.answer(Question(tuned.resolve_query_row(1), budget=2))
    assert (answer.relative_noise, answer.warnings) == (3.5, ())


def test_a_clipped_budget_takes_the_whole_pool_and_says_so(own: Attributor) -> None:
    answer = own.answer(Question(own.resolve_query_row(1), budget=1000, relative_noise=1.0, clip_budget=True))
    assert len(answer.hits) == 40
    assert answer.stopped == "budget"
    assert any("clipped" in warning for warning in answer.warnings)
    assert close(answer.information.fraction, 1.0)


@pytest.mark.parametrize("method", [*METHODS, "random"])
def test_parts_add_up_to_the_answer(own: Attributor, method: str) -> None:
    question = Question(own.resolve_query_row(1), method, 5, relative_noise=0.1)
    parts = list(own.steps(question))
    start, hits, answer = parts[0], parts[1:-1], parts[-1]
    assert isinstance(start, Start)
    assert isinstance(answer, Answer)
    assert (start.budget, start.candidates) == (5, 40)
    assert start.query.posterior_variance is None
    assert start.warnings == answer.warnings
    whole = own.answer(question)
    assert answer.hits == whole.hits
    assert answer.information == whole.information
    for part, hit in zip(hits, whole.hits, strict=True):
        assert isinstance(part, Hit)
        assert (part.row, part.cumulative_nats) == (hit.row, hit.cumulative_nats)
    assert sum(hit.step_nats for hit in whole.hits) == pytest.approx(whole.hits[-1].cumulative_nats, rel=1e-9)


@pytest.mark.parametrize("method", [*METHODS, "random"])
def test_selection_stops_before_a_step_that_adds_too_little(own: Attributor, method: str) -> None:
    query = own.resolve_query_row(1)
    whole = own.answer(Question(query, method, 40, relative_noise=0.1))
    # A step in the middle that adds less than all before it ends the selection just before itself.
    steps = [hit.step_nats for hit in whole.hits]
    end = next(i for i in range(3, 40) if steps[i] < min(steps[:i]))
    threshold = (steps[end] + min(steps[:end])) / 2
    answer = own.answer(Question(query, method, 40, relative_noise=0.1, min_step_nats=threshold))
    assert answer.stopped == "min_step_nats"
    assert [hit.row for hit in answer.hits] == [hit.row for hit in whole.hits[:end]]
    rows, sketches = comparable(own.index, query)
    picks = [int((rows == hit.row).nonzero()) for hit in answer.hits]
    noise = answer.noise_variance
    assert close(answer.information.infogain_nats, oracles.info_gain(query.sketch, sketches[picks], noise))
    assert close(answer.information.infoloss_nats, oracles.info_loss(query.sketch, sketches, picks, noise))


@pytest.mark.parametrize("method", [*METHODS, "random"])
def test_selection_stops_at_a_share_of_the_information(own: Attributor, method: str) -> None:
    query = own.resolve_query_row(1)
    answer = own.answer(Question(query, method, 40, relative_noise=0.1, information_fraction=0.5))
    assert answer.stopped == "information_fraction"
    assert answer.information.fraction is not None
    assert answer.information.fraction >= 0.5
    rows, sketches = comparable(own.index, query)
    before = [int((rows == hit.row).nonzero()) for hit in answer.hits[:-1]]
    gained = oracles.info_gain(query.sketch, sketches[before], answer.noise_variance) if before else 0.0
    available = answer.information.available_nats
    assert available is not None
    assert gained < 0.5 * available


@pytest.mark.parametrize("method", METHODS)
def test_selection_stops_when_no_candidate_informs(tmp_path: Path, method: str) -> None:
    sketches = np.zeros((12, 4), np.float32)
    sketches[:3, 0] = [1.0, 2.0, 3.0]  # only these three share a direction with the query
    sketches[3:, 2] = 1.0
    index = make_index(tmp_path, sketches={"own": sketches}, labels=np.zeros(12, np.int64), num_classes=3, faiss="Flat")
    asked = Attributor(index)
    query = asked.resolve_sketch([1.0, 0.5, 0.0, 0.0], 0)
    answer = asked.answer(Question(query, method, 8, relative_noise=1.0))
    assert answer.stopped == "uninformative"
    assert sorted(hit.row for hit in answer.hits) == [0, 1, 2]
    unrelated = asked.answer(Question(asked.resolve_sketch([0.0, 1.0, 0.0, 0.0], 0), method, 8, relative_noise=1.0))
    assert unrelated.stopped == "uninformative"
    assert unrelated.hits == ()
    assert unrelated.information.infogain_nats == 0.0
    assert unrelated.information.infoloss_nats == 0.0
    assert unrelated.information.fraction is None
    assert unrelated.query.posterior_variance == unrelated.query.prior_variance


def test_rescoring_is_done_where_asked_for(own: Attributor) -> None:
    query = own.resolve_query_row(1)
    bare = own.answer(Question(query, budget=3, relative_noise=1.0, rescore=(), available=False))
    assert bare.information.infogain_nats > 0
    assert bare.information.infoloss_nats is None
    assert bare.information.available_nats is None
    assert "available is false" in str(bare.information.available_reason)
    lost = own.answer(Question(query, "infoloss", 3, relative_noise=1.0, rescore=()))
    assert lost.information.infoloss_nats == lost.hits[-1].cumulative_nats


def test_random_is_uniform_seeded_and_scored_exactly(own: Attributor) -> None:
    query = own.resolve_query_row(1)
    one, same, other = (own.answer(Question(query, "random", 6, relative_noise=1.0, seed=seed)) for seed in (1, 1, 2))
    assert one.hits == same.hits
    assert [hit.row for hit in one.hits] != [hit.row for hit in other.hits]
    scores = [hit.score for hit in one.hits]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score < 1 for score in scores)
    rows, sketches = comparable(own.index, query)
    picks = [int((rows == hit.row).nonzero()) for hit in one.hits]
    assert close(one.hits[-1].cumulative_nats, oracles.info_gain(query.sketch, sketches[picks], one.noise_variance))
    drawn = [own.answer(Question(query, "random", 1, relative_noise=1.0, seed=seed)).hits[0].row for seed in range(200)]
    assert len(set(drawn)) > 30  # of 40; a uniform draw misses a given row 200 times with probability 0.6 %


def test_without_a_faiss_index_brute_force_searches_and_says_so(tmp_path: Path) -> None:
    asked = attributor(tmp_path, faiss=None)
    answer = asked.answer(Question(asked.resolve_query_row(1), budget=3, relative_noise=1.0))
    assert (answer.search.engine, answer.search.factory, answer.search.exact) == ("brute_force", None, True)
    assert any("no FAISS index" in warning for warning in answer.warnings)
    chosen = Attributor(asked.index, engine="brute_force")
    assert chosen.answer(Question(chosen.resolve_query_row(1), budget=3, relative_noise=1.0)).warnings == ()


def test_an_approximate_index_is_not_exact_and_says_so(tmp_path: Path) -> None:
    asked = attributor(tmp_path, faiss="IVF4,Flat", dim=16)
    search, _ = asked._engines.search(asked.index.view("own"), 1)
    assert isinstance(search, FaissSearch)
    for strategy in ("certified", "literal"):
        answer = asked.answer(Question(asked.resolve_query_row(1), budget=3, relative_noise=1.0, strategy=strategy))
        assert not answer.search.exact
        assert any("recall" in warning for warning in answer.warnings)
        assert len(answer.hits) == 3


def test_targets_of_stored_rows_without_labels_or_predictions(tmp_path: Path) -> None:
    asked = Attributor(make_index(tmp_path, view="margin", num_rows=20, dim=6))
    assert asked.resolve_train_row(3).label == int(asked.index.labels[3])
    assert asked.resolve_sketch([1.0] * 6).label is None  # all rows are comparable, whatever class the query is of
    assert asked.resolve_sketch([1.0] * 6, 2).label == 2
    answer = asked.answer(Question(asked.resolve_query_row(2), budget=3, filter=CandidateFilter(labels=[0])))
    assert {hit.label for hit in answer.hits} == {0}
    # This index stores no predictions of its training rows in the one-view-per-class case's column.
    classes = Attributor(make_index(tmp_path / "classes", view="class", num_rows=20, dim=6))
    if classes.index.predicted_labels is None:
        with pytest.raises(NoLabelError):
            classes.resolve_train_row(3)
    assert classes.resolve_train_row(3, "true").view == str(int(classes.index.labels[3]))
    assert classes.resolve_train_row(3, 1).view == "1"


def test_the_true_label_of_an_unlabelled_row_is_refused(tmp_path: Path) -> None:
    labels = np.zeros(10, np.int64)
    labels[4] = -1
    asked = Attributor(make_index(tmp_path, view="class", num_rows=10, dim=4, labels=labels))
    with pytest.raises(NoTrueLabelError):
        asked.resolve_train_row(4, "true")
    answer = asked.answer(Question(asked.resolve_query_row(1), budget=10, relative_noise=1.0))
    assert next(hit.label for hit in answer.hits if hit.row == 4) is None


def duplicated_index(path: Path, *, spectra: bool, dim: int = 48) -> Attributor:
    rng = np.random.default_rng(3)
    sketches = rng.standard_normal((90, dim)).astype(np.float32)
    sketches[30:60] = sketches[5] * rng.uniform(0.5, 2.0, (30, 1)).astype(np.float32)  # 30 copies of row 5, rescaled
    sketches[60] = -sketches[6]  # an opponent is no duplicate
    sketches[61] = sketches[6] + 0.1 * sketches[7]
    sketches[62] = 0.0
    labels = np.zeros(90, np.int64)
    index = small_index(path, spectra=spectra, sketches={"own": sketches}, labels=labels, num_rows=90)
    return Attributor(index)


@pytest.mark.parametrize("spectra", [True, False])
def test_a_hit_says_what_it_stands_for(tmp_path: Path, spectra: bool) -> None:
    asked = duplicated_index(tmp_path, spectra=spectra)
    view = asked.index.view("own")
    sketches = view.sketches(slice(None))
    query = asked.resolve_sketch((sketches[5] + sketches[6] + 0.1 * sketches[8]).tolist(), 0)
    answer = asked.answer(
        Question(query, budget=6, relative_noise=0.1, filter=CandidateFilter(exclude_ids=["train:31"]))
    )
    selected = {hit.row for hit in answer.hits}
    cosines = sketches @ sketches.T
    norms = sketches.norm(dim=1)
    near = (cosines > 0.95 * norms[:, None] * norms) & (norms > 0)
    represented = 0
    for hit in answer.hits:
        expected = [
            row for row in range(90) if bool(near[hit.row, row]) and row not in selected and row not in (31, hit.row)
        ]
        assert hit.represents.count == len(expected)
        assert hit.represents.ids == tuple(f"train:{row}" for row in expected[:20])
        represented = max(represented, len(expected))
    assert represented > 20


def test_a_streamed_hit_leaves_out_what_was_selected_so_far(tmp_path: Path) -> None:
    asked = duplicated_index(tmp_path, spectra=False)
    query = asked.resolve_train_row(5, include_self=True)
    question = Question(query, budget=4, relative_noise=0.01, filter=CandidateFilter(where={"source": "web"}))
    streamed = list(asked.ask(question).steps())
    final = asked.answer(question)
    taken: set[str] = set()
    for hit, settled in zip(streamed, final.hits, strict=True):
        taken.add(hit.id)
        assert not taken & set(hit.represents.ids)
        assert set(settled.represents.ids) <= set(hit.represents.ids) | {"more than twenty"}
        assert settled.represents.count <= hit.represents.count


def test_loading_maps_everything(own: Attributor) -> None:
    fresh = Attributor(own.index)
    fresh.load()
    for label in (0, 1, 2):
        assert fresh._spectra.kernel(own.index.view("own"), label) is not None


def test_a_deadline_stops_an_answer_between_picks(own: Attributor) -> None:
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        own.ask(Question(own.resolve_query_row(1), budget=10, relative_noise=1.0)).answer(check)
    assert len(calls) == 3
