from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indexer.attributor import Attributor, CandidateFilter, QuerySketch, Question, QuestionError, errors
from indexer.attributor.pool import resolve_pool
from tests.index_factory import make_index
from tests.indexer.attributor.asking import attributor, small_index

Ask = Callable[[Attributor], Any]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Attributor:
    return attributor(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Attributor:
    return attributor(tmp_path_factory.mktemp("classes"), view="class", num_rows=30, dim=8)


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Attributor:
    return attributor(tmp_path_factory.mktemp("custom"), view="custom", num_rows=30, dim=8)


def asking(**fields: Any) -> Ask:
    return lambda asked: asked.answer(Question(asked.resolve_query_row(1), **fields))


def filtered(**fields: Any) -> Ask:
    return asking(filter=CandidateFilter(**fields))


NAN, INFINITY = float("nan"), float("inf")
TABLE: dict[str, tuple[Ask, type[QuestionError], str, str]] = {
    "query row": (lambda a: a.resolve_query_row(6), errors.UnknownRowError, "unknown_row", "/query/row"),
    "negative row": (lambda a: a.resolve_query_row(-1), errors.UnknownRowError, "unknown_row", "/query/row"),
    "boolean row": (lambda a: a.resolve_query_row(True), errors.UnknownRowError, "unknown_row", "/query/row"),
    "train row": (lambda a: a.resolve_train_row(120), errors.UnknownRowError, "unknown_row", "/query/row"),
    "train id": (lambda a: a.resolve_train_id("train:999"), errors.UnknownIdError, "unknown_id", "/query/id"),
    "no sketch at target": (
        lambda a: a.resolve_query_row(1, 2),
        errors.TargetNotStoredError,
        "target_not_stored",
        "/target/label",
    ),
    "label nobody has": (
        lambda a: a.resolve_query_row(1, 7),
        errors.UnknownLabelError,
        "unknown_label",
        "/target/label",
    ),
    "word for a target": (
        lambda a: a.resolve_query_row(1, "best"),  # type: ignore[arg-type]
        errors.UnknownLabelError,
        "unknown_label",
        "/target/label",
    ),
    "train row of another label": (
        lambda a: a.resolve_train_row(0, (int(a.index.labels[0]) + 1) % 3),
        errors.LabelMismatchError,
        "label_mismatch",
        "/target/label",
    ),
    "sketch without label": (
        lambda a: a.resolve_sketch([1.0] * 48),
        errors.NoLabelError,
        "no_label",
        "/query/label",
    ),
    "sketch of another target": (
        lambda a: a.resolve_sketch([1.0] * 48, 1, 2),
        errors.LabelMismatchError,
        "label_mismatch",
        "/target/label",
    ),
    "sketch of an unknown label": (
        lambda a: a.resolve_sketch([1.0] * 48, 9),
        errors.UnknownLabelError,
        "unknown_label",
        "/query/label",
    ),
    "wrong dimension": (
        lambda a: a.resolve_sketch([1.0] * 47, 1),
        errors.WrongDimensionError,
        "wrong_dimension",
        "/query/values",
    ),
    "NaN": (
        lambda a: a.resolve_sketch([1.0, NAN] + [0.0] * 46, 1),
        errors.NotFiniteError,
        "not_finite",
        "/query/values/1",
    ),
    "infinity": (
        lambda a: a.resolve_sketch([INFINITY] + [0.0] * 47, 1),
        errors.NotFiniteError,
        "not_finite",
        "/query/values/0",
    ),
    "zero query": (
        lambda a: a.resolve_sketch([0.0] * 48, 1),
        errors.ZeroQueryError,
        "zero_query",
        "/query/values",
    ),
    "query too large to square": (
        lambda a: a.resolve_sketch([1e200] * 48, 1),
        errors.NormRangeError,
        "norm_out_of_range",
        "/query/values",
    ),
    "query too small to square": (
        lambda a: a.resolve_sketch([1e-200] * 48, 1),
        errors.NormRangeError,
        "norm_out_of_range",
        "/query/values",
    ),
    "zero query made by hand": (
        lambda a: a.answer(Question(QuerySketch(torch.zeros(48).double(), "own", 1))),
        errors.ZeroQueryError,
        "zero_query",
        "/query",
    ),
    "view nobody built": (
        lambda a: a.answer(Question(QuerySketch(torch.ones(48).double(), "margin", 1))),
        errors.UnknownViewError,
        "unknown_view",
        "/target/label",
    ),
    "method": (asking(method="trak"), errors.MethodUnavailableError, "method_unavailable", "/method"),
    "budget 0": (asking(budget=0), errors.BudgetRangeError, "budget_range", "/budget"),
    "budget true": (asking(budget=True), errors.BudgetRangeError, "budget_range", "/budget"),
    "budget above the pool": (asking(budget=41), errors.BudgetTooLargeError, "budget_too_large", "/budget"),
    "both noises": (
        asking(noise_variance=1.0, relative_noise=1.0),
        errors.NoiseConflictError,
        "noise_conflict",
        "/relative_noise",
    ),
    "noise 0": (asking(noise_variance=0.0), errors.NoiseRangeError, "noise_range", "/noise_variance"),
    "noise NaN": (asking(relative_noise=NAN), errors.NoiseRangeError, "noise_range", "/relative_noise"),
    "noise false": (asking(relative_noise=False), errors.NoiseRangeError, "noise_range", "/relative_noise"),
    "noise overflows": (asking(relative_noise=1e308), errors.NoiseRangeError, "noise_range", "/relative_noise"),
    "noise vanishes": (asking(noise_variance=5e-324), errors.NoiseRangeError, "noise_range", "/noise_variance"),
    "condition": (asking(condition="some"), errors.OptionError, "unknown_option", "/condition"),
    "strategy": (asking(strategy="fast"), errors.OptionError, "unknown_option", "/strategy"),
    "criterion": (asking(rescore=("infogain", "auc")), errors.OptionError, "unknown_option", "/rescore/1"),
    "min_step_nats": (asking(min_step_nats=-1.0), errors.StopRangeError, "stop_range", "/min_step_nats"),
    "fraction": (
        asking(information_fraction=1.5),
        errors.StopRangeError,
        "stop_range",
        "/information_fraction",
    ),
    "another label": (filtered(labels=[1, 2]), errors.LabelMismatchError, "label_mismatch", "/filter/labels/1"),
    "unknown label": (filtered(labels=[9]), errors.UnknownLabelError, "unknown_label", "/filter/labels/0"),
    "unknown id": (
        filtered(ids=["train:1", "train:x"]),
        errors.UnknownIdError,
        "unknown_id",
        "/filter/ids/1",
    ),
    "unknown excluded id": (
        filtered(exclude_ids=["nobody"]),
        errors.UnknownIdError,
        "unknown_id",
        "/filter/exclude_ids/0",
    ),
    "unknown metadata": (
        filtered(where={"a/b": 1}),
        errors.UnknownMetadataError,
        "unknown_metadata",
        "/filter/where/a~1b",
    ),
    "metadata of another type": (
        filtered(where={"source": 3}),
        errors.UnknownMetadataError,
        "unknown_metadata",
        "/filter/where/source",
    ),
    "nothing passes": (filtered(where={"source": "radio"}), errors.EmptyPoolError, "empty_pool", "/filter"),
    "score nothing": (lambda a: score(a, []), errors.EmptyPoolError, "empty_pool", "/ids"),
    "score twice": (
        lambda a: score(a, [comparable_id(a), comparable_id(a)]),
        errors.DuplicateIdError,
        "duplicate_id",
        "/ids/1",
    ),
    "score the excluded": (
        lambda a: score(a, [comparable_id(a)], exclude_ids=[comparable_id(a)]),
        errors.EmptyPoolError,
        "empty_pool",
        "/ids/0",
    ),
    "score an unknown id": (lambda a: score(a, ["nobody"]), errors.UnknownIdError, "unknown_id", "/ids/0"),
    "score without an unknown id": (
        lambda a: score(a, [comparable_id(a)], exclude_ids=["nobody"]),
        errors.UnknownIdError,
        "unknown_id",
        "/exclude_ids/0",
    ),
    "score by an unknown criterion": (
        lambda a: score(a, [comparable_id(a)], criteria=["auc"]),
        errors.OptionError,
        "unknown_option",
        "/criteria/0",
    ),
}


def comparable_id(asked: Attributor) -> str:
    return f"train:{int(asked.index.view('own').partition_rows(1)[0])}"


def score(asked: Attributor, ids: list[str], **fields: Any) -> Any:
    return asked.scores(asked.resolve_query_row(1), ids, relative_noise=1.0, **fields)


@pytest.mark.parametrize("case", TABLE)
def test_bad_questions_are_refused_with_code_and_pointer(own: Attributor, case: str) -> None:
    ask, error, code, pointer = TABLE[case]
    with pytest.raises(error) as caught:
        ask(own)
    assert type(caught.value) is error
    assert (caught.value.code, caught.value.pointer) == (code, pointer)
    assert str(caught.value)


def test_refusals_name_what_is_allowed(own: Attributor) -> None:
    with pytest.raises(errors.BudgetTooLargeError) as budget:
        own.answer(Question(own.resolve_query_row(1), budget=41))
    assert budget.value.allowed == {"ge": 1, "le": 40}
    with pytest.raises(errors.MethodUnavailableError) as method:
        own.answer(Question(own.resolve_query_row(1), method="repsim"))
    assert method.value.allowed == ["infogain_approx", "infogain", "infoloss", "relatif", "random"]
    with pytest.raises(errors.TargetNotStoredError) as target:
        own.resolve_query_row(1, 2)
    assert target.value.allowed == [1]
    with pytest.raises(errors.LabelMismatchError) as label:
        own.answer(Question(own.resolve_query_row(1), filter=CandidateFilter(labels=[2])))
    assert label.value.allowed == [1]
    with pytest.raises(errors.UnknownIdError) as id:
        own.resolve_train_id("train:12x")
    assert id.value.allowed == {"from": "train:0", "to": "train:119"}


def test_an_id_of_another_label_is_refused_on_an_own_label_index(own: Attributor) -> None:
    other = int(own.index.view("own").partition_rows(2)[0])
    query = own.resolve_query_row(1)
    with pytest.raises(errors.LabelMismatchError) as caught:
        own.answer(Question(query, filter=CandidateFilter(ids=[f"train:{other}"])))
    assert caught.value.pointer == "/filter/ids/0"
    with pytest.raises(errors.LabelMismatchError) as scored:
        score(own, [f"train:{other}"])
    assert scored.value.pointer == "/ids/0"


def test_a_class_without_a_view_is_refused_with_the_classes(classes: Attributor) -> None:
    with pytest.raises(errors.UnknownLabelError) as caught:
        classes.resolve_query_row(0, 5)
    assert caught.value.allowed == [0, 1, 2]


def test_a_measurement_without_classes_takes_no_target(custom: Attributor) -> None:
    query = custom.resolve_query_row(1)
    assert (query.view, query.label) == ("custom", None)
    assert custom.resolve_train_row(3).label is None
    assert custom.resolve_sketch([1.0] * 8).label is None
    assert custom.answer(Question(query, budget=2, relative_noise=1.0)).query.label is None
    for ask in (
        lambda: custom.resolve_query_row(1, 2),
        lambda: custom.resolve_train_row(1, 2),
        lambda: custom.resolve_sketch([1.0] * 8, 2),
    ):
        with pytest.raises(errors.UnknownLabelError):
            ask()


def test_an_index_without_queries_says_how_to_ask(tmp_path: Path) -> None:
    asked = Attributor(make_index(tmp_path, num_queries=0, num_rows=12, dim=4))
    with pytest.raises(errors.UnknownRowError, match="Ask with a train_id"):
        asked.resolve_query_row(0)


def test_a_target_that_no_training_row_has_is_refused(own: Attributor) -> None:
    query = QuerySketch(torch.ones(48).double(), "own", 5)
    with pytest.raises(errors.UnknownLabelError) as caught:
        own.answer(Question(query))
    assert caught.value.allowed == [0, 1, 2]


def test_rows_of_zeros_give_relative_noise_no_unit(tmp_path: Path) -> None:
    index = make_index(tmp_path, sketches={"own": np.zeros((9, 4), np.float32)}, num_queries=3)
    asked = Attributor(index)
    with pytest.raises(errors.NoNoiseUnitError) as caught:
        asked.answer(Question(asked.resolve_query_row(0)))
    assert caught.value.code == "no_noise_unit"


def test_excluding_every_row_leaves_an_empty_pool(own: Attributor) -> None:
    query = own.resolve_query_row(1)
    everyone = [f"train:{row}" for row in range(own.index.num_rows)]
    with pytest.raises(errors.EmptyPoolError):
        resolve_pool(own.index, query, CandidateFilter(exclude_ids=everyone), "comparable")


def test_a_spectrum_neither_stored_nor_small_is_named(tmp_path: Path) -> None:
    index = small_index(tmp_path, spectra=False)
    asked = Attributor(index, max_computed_size=10)
    assert asked.methods == ("infogain_approx", "infogain", "random")
    query = asked.resolve_query_row(1)
    answer = asked.answer(Question(query, budget=3, relative_noise=1.0))
    assert answer.information.available_nats is None
    assert "indexer derive" in str(answer.information.available_reason)
    assert answer.information.infoloss_nats is None
    assert any("infoloss_nats is null" in warning for warning in answer.warnings)
    for fields, pointer in (
        ({"available": True}, "/available"),
        ({"information_fraction": 0.5}, "/information_fraction"),
    ):
        with pytest.raises(errors.MissingSpectrumError) as caught:
            asked.answer(Question(query, budget=3, relative_noise=1.0, **fields))  # type: ignore[arg-type]
        assert caught.value.pointer == pointer
    with pytest.raises(errors.MissingSpectrumError) as scored:
        score(asked, [comparable_id(asked)])
    assert scored.value.pointer == "/criteria"


def test_every_error_has_a_code_of_its_own() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, QuestionError)]
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes)
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in kinds)


def test_an_engine_or_strategy_that_does_not_exist_is_refused(own: Attributor) -> None:
    with pytest.raises(errors.OptionError):
        Attributor(own.index, engine="milvus")
    with pytest.raises(errors.OptionError):
        Attributor(own.index, strategy="fast")


def test_a_class_cannot_be_explained_where_the_measurement_is_of_none(tmp_path):
    each = Attributor(make_index(tmp_path, view="custom"), engine="brute_force")
    askings: list[Callable[[Any], Any]] = [
        lambda target: each.resolve_query_row(0, target),
        lambda target: each.resolve_train_row(0, target),
        lambda target: each.resolve_sketch([1.0] * each.index.manifest.sketch_dim, None, target),
    ]
    for ask in askings:
        with pytest.raises(errors.UnknownLabelError, match="the true label was asked for, but this index's"):
            ask("true")
        with pytest.raises(errors.UnknownLabelError, match="label 1 was asked for"):
            ask(1)
        assert ask("predicted").label is None
