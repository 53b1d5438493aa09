from dataclasses import replace

import pytest

from benchmarks import coreset
from benchmarks.dense_coreset import dense_picks
from indexer.attributor.coreset import Coreset, CoresetQuestion
from sketchstore.reader import Index


@pytest.mark.parametrize("rule", ["infogain", "infogain_approx", "infoloss"])
@pytest.mark.parametrize("weighting", ["inverse_variance", "uniform"])
def test_picks_are_those_of_a_dense_scan(small_index: Index, rule: str, weighting: str) -> None:
    question = CoresetQuestion(budget=12, rule=rule, weighting=weighting, relative_noise=0.5)
    figures = coreset.measure(small_index.path, question, checked=12)
    assert figures["picks"] == figures["checked_picks"] == 12
    assert figures["picks_equal"]
    assert figures["pick_ms_median"] > 0


def test_other_picks_are_found_to_be_others(small_index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    question = CoresetQuestion(budget=12, rule="infoloss", relative_noise=0.5)
    gained = Coreset(small_index, replace(question, rule="infogain"))  # what informs is not what is missed
    monkeypatch.setattr(coreset, "dense_picks", lambda selection, count: dense_picks(gained, count))
    assert not coreset.measure(small_index.path, question, checked=12)["picks_equal"]
