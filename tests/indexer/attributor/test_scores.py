from pathlib import Path

import pytest

from indexer.attributor import Attributor
from tests import oracles
from tests.indexer.attributor.asking import attributor, close, comparable


@pytest.fixture(scope="module", params=["kernel", "gram"])
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Attributor:
    return attributor(tmp_path_factory.mktemp("own"), dim=48 if request.param == "kernel" else 12)


@pytest.mark.parametrize("relative_noise", [0.01, 1.0, 100.0])
def test_scores_are_the_oracles_nats(asked: Attributor, relative_noise: float) -> None:
    query = asked.resolve_query_row(1)
    rows, sketches = comparable(asked.index, query)
    places = [7, 2, 30, 11]
    ids = [f"train:{row}" for row in rows[places].tolist()]
    scores = asked.scores(query, ids, relative_noise=relative_noise)
    noise = scores.noise_variance
    assert close(scores.set.infogain_nats, oracles.info_gain(query.sketch, sketches[places], noise))
    assert close(scores.set.infoloss_nats, oracles.info_loss(query.sketch, sketches, places, noise))
    for member, place, id in zip(scores.members, places, ids, strict=True):
        assert (member.row, member.id) == (int(rows[place]), id)
        assert close(member.infogain_nats, oracles.info_gain(query.sketch, sketches[[place]], noise))
        assert close(member.infoloss_nats, oracles.info_loss(query.sketch, sketches, [place], noise), 1e-7)


def test_only_the_criteria_asked_for_are_computed(asked: Attributor) -> None:
    query = asked.resolve_query_row(1)
    rows, _ = comparable(asked.index, query)
    scores = asked.scores(query, [f"train:{int(rows[0])}"], criteria=["infogain"])
    assert scores.set.infoloss_nats is None
    assert scores.members[0].infoloss_nats is None
    assert scores.members[0].infogain_nats == pytest.approx(scores.set.infogain_nats, rel=1e-10)
    assert "untuned" in scores.warnings[0]


def test_excluded_examples_leave_d(asked: Attributor) -> None:
    query = asked.resolve_query_row(1)
    rows, sketches = comparable(asked.index, query)
    gone = [f"train:{row}" for row in rows[:5].tolist()]
    scores = asked.scores(query, [f"train:{int(rows[9])}"], noise_variance=3.0, exclude_ids=gone)
    assert close(scores.set.infoloss_nats, oracles.info_loss(query.sketch, sketches[5:], [4], 3.0))


def test_scores_of_the_selected_are_the_answers_nats(tmp_path: Path) -> None:
    from indexer.attributor import Question

    asked = attributor(tmp_path)
    query = asked.resolve_query_row(2)
    answer = asked.answer(Question(query, budget=6, relative_noise=0.1))
    scores = asked.scores(query, [hit.id for hit in answer.hits], relative_noise=0.1)
    assert close(scores.set.infogain_nats, answer.information.infogain_nats, 1e-10)
    assert answer.information.infoloss_nats is not None
    assert close(scores.set.infoloss_nats, answer.information.infoloss_nats, 1e-10)
