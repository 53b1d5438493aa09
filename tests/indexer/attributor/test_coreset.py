"""Coresets from an open index: the picks of the mathematics on its stored rows, and what is refused."""

import pytest
import torch

from attribution.candidates import DenseCandidates
from attribution.errors import TableSizeError
from attribution.many_queries import select_many
from indexer.attributor import QuestionError
from indexer.attributor.coreset import Coreset, CoresetQuestion
from indexer.attributor.errors import (
    BudgetRangeError,
    BudgetTooLargeError,
    EmptyPoolError,
    LabelMismatchError,
    OptionError,
    UnknownRowError,
)
from tests.index_factory import make_index


@pytest.fixture(params=[(60, 16), (14, 16)], ids=["gram", "kernel"])
def margins(tmp_path, request):
    num_rows, dim = request.param
    return make_index(tmp_path, view="margin", num_rows=num_rows, dim=dim)


@pytest.mark.parametrize("weighting", ["inverse_variance", "uniform"])
@pytest.mark.parametrize("rule", ["infogain", "infogain_approx", "infoloss"])
def test_picks_and_nats_are_those_of_the_rows_in_memory(margins, rule, weighting):
    question = CoresetQuestion(budget=6, rule=rule, weighting=weighting, relative_noise=0.5)
    selection = Coreset(margins, question)
    assert selection.num_queries == margins.queries.count
    queries = torch.stack(
        [margins.queries.sketch(row, "margin", margins.queries.predicted_label(row)) for row in range(6)]
    )
    rows = margins.view("margin").sketches(slice(None))
    expected = list(
        select_many(queries, DenseCandidates(rows), selection.noise.variance, budget=6, rule=rule, weighting=weighting)
    )
    found = list(selection.picks())
    assert [pick.row for pick in found] == [step.position for step in expected]
    assert [pick.id for pick in found] == [f"train:{pick.row}" for pick in found]
    assert [pick.label for pick in found] == [int(margins.labels[pick.row]) for pick in found]
    for pick, step in zip(found, expected, strict=True):
        # The same sums in another order, through an eigendecomposition for InfoLoss.
        assert pick.score == pytest.approx(step.score, rel=1e-9)
        assert pick.mean_nats == pytest.approx(float(step.cumulative_nats.mean()), rel=1e-9)


def test_quotas_balance_the_labels(margins):
    picks = list(Coreset(margins, CoresetQuestion(budget=6, quota_per_label=2)).picks())
    assert sorted(pick.label for pick in picks) == [0, 0, 1, 1, 2, 2]


def test_one_view_per_class_needs_the_class_and_takes_its_view(tmp_path):
    index = make_index(tmp_path, view="class")
    with pytest.raises(LabelMismatchError, match=r"about 3 classes.*--label"):
        Coreset(index, CoresetQuestion(budget=1))
    selection = Coreset(index, CoresetQuestion(budget=4, label=1))
    assert selection.view.name == "1"
    assert (selection.num_queries, selection.candidates) == (2, 60)
    assert len(list(selection.picks())) == 4


def test_an_own_label_index_takes_rows_of_the_class_alone(tmp_path):
    index = make_index(tmp_path, view="own")
    with pytest.raises(LabelMismatchError, match="label_logit"):
        Coreset(index, CoresetQuestion(budget=1))
    for rule in ("infogain", "infoloss"):
        picks = list(Coreset(index, CoresetQuestion(budget=4, label=1, rule=rule)).picks())
        assert {pick.label for pick in picks} == {1}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"budget": 61}, BudgetTooLargeError, "exceeds the 60 rows"),
        ({"budget": 7, "quota_per_label": 2}, BudgetTooLargeError, "exceeds the 6 rows"),
        ({"budget": 0}, BudgetRangeError, "budget is 0"),
        ({"quota_per_label": 0}, BudgetRangeError, "quota_per_label is 0"),
        ({"rule": "joint"}, OptionError, "infogain_approx"),
        ({"weighting": "none"}, OptionError, "uniform"),
        ({"num_queries": 7}, UnknownRowError, "stores 6"),
        ({"label": 9}, EmptyPoolError, "to none"),
        ({"max_table_bytes": 1439}, TableSizeError, "at most 5 queries"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tmp_path, changes, error, message):
    index = make_index(tmp_path, view="margin")
    with pytest.raises(error, match=message):
        Coreset(index, CoresetQuestion(**({"budget": 1} | changes)))


def test_an_index_without_queries_or_classes_says_so(tmp_path):
    with pytest.raises(UnknownRowError, match="--num-queries"):
        Coreset(make_index(tmp_path, name="none", view="margin", num_queries=0), CoresetQuestion(budget=1))
    custom = make_index(tmp_path, view="custom")
    assert len(list(Coreset(custom, CoresetQuestion(budget=2)).picks())) == 2
    with pytest.raises(QuestionError, match="not of a class"):
        Coreset(custom, CoresetQuestion(budget=1, label=1))
