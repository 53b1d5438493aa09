"""Groups by metadata, by label and by ids; their nats on a stored index against dense float64 oracles."""

from pathlib import Path

import pytest
import torch

from indexer.attributor import Attributor, GroupQuestion
from indexer.attributor.errors import (
    DuplicateIdError,
    EmptyPoolError,
    MissingSpectrumError,
    NoiseTooSmallError,
    OptionError,
    TooManyGroupsError,
    UnknownIdError,
    UnknownMetadataError,
)
from sketchstore.reader import open_index
from sketchstore.tables import ExampleRow
from sketchstore.writer import IndexWriter
from tests import oracles
from tests.index_factory import make_contents, make_plan, write_contents
from tests.indexer.attributor.asking import attributor, close, comparable, small_index


@pytest.fixture(scope="module", params=["kernel", "gram"])
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Attributor:
    return attributor(tmp_path_factory.mktemp("own"), dim=48 if request.param == "kernel" else 12)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Attributor:
    return attributor(tmp_path_factory.mktemp("margin"), view="margin", dim=12)


def test_groups_by_metadata_are_its_values(asked: Attributor) -> None:
    found = asked.groups("source")
    assert [group.name for group in found.groups] == ["book", "web"]
    assert found.groups[1].rows.tolist() == list(range(1, 120, 2))
    assert [group.name for group in asked.groups("length").groups] == [str(length) for length in range(7)]
    labels = asked.groups("label")
    assert [group.name for group in labels.groups] == ["0", "1", "2"]
    assert torch.equal(asked.index.labels[labels.groups[2].rows], torch.full((40,), 2))
    assert found.num_without == labels.num_without == 0


def test_rows_without_a_value_or_a_label_are_in_no_group(tmp_path: Path) -> None:
    plan = make_plan(num_rows=4, num_classes=1, view="margin")
    with IndexWriter.create(tmp_path / "small", plan) as writer:
        write_contents(writer, make_contents(plan, num_classes=1), num_queries=0)
        metadata: list[dict[str, str | None]] = [{}, {"source": "b"}, {"source": None}, {"source": "a"}]
        labels = [5, -1, 5, 2]
        writer.write_examples([ExampleRow(f"{row}", labels[row], metadata=metadata[row]) for row in range(4)])
        asked = Attributor(open_index(writer.publish()))
    found = asked.groups("source")
    assert [(group.name, group.rows.tolist()) for group in found.groups] == [("a", [3]), ("b", [1])]
    assert found.num_without == 2
    found = asked.groups("label")
    assert [(group.name, group.rows.tolist()) for group in found.groups] == [("2", [3]), ("5", [0, 2])]
    assert found.num_without == 1


def test_groups_by_a_column_that_cannot_be_are_refused(asked: Attributor) -> None:
    with pytest.raises(UnknownMetadataError, match="label") as caught:
        asked.groups("colour")
    assert (caught.value.pointer, caught.value.allowed) == ("/groups/by", ["length", "source", "weight", "label"])
    with pytest.raises(TooManyGroupsError, match="120 values"):
        asked.groups("weight", most=100)


def test_groups_of_ids_that_cannot_be_are_refused(asked: Attributor) -> None:
    with pytest.raises(EmptyPoolError, match="at least one group"):
        asked.groups({})
    with pytest.raises(EmptyPoolError, match="'a/b' is empty") as caught:
        asked.groups({"a/b": []})
    assert caught.value.pointer == "/groups/a~1b"
    with pytest.raises(UnknownIdError) as unknown:
        asked.groups({"a": ["train:0", "train:999"]})
    assert unknown.value.pointer == "/groups/a/1"
    with pytest.raises(DuplicateIdError) as twice:
        asked.groups({"a": ["train:5", "train:1", "train:5"]})
    assert twice.value.pointer == "/groups/a/2"


@pytest.mark.parametrize("relative_noise", [0.01, 1.0, 100.0])
def test_nats_of_metadata_groups_are_the_oracle_s(asked: Attributor, relative_noise: float) -> None:
    query = asked.resolve_query_row(1)
    rows, sketches = comparable(asked.index, query)
    groups = asked.groups("source").groups
    nats = asked.group_nats(GroupQuestion([query], groups, relative_noise=relative_noise))
    noise = nats.noises[0].variance
    assert nats.infogain is not None
    assert nats.infoloss is not None
    assert close(float(nats.available[0]), oracles.info_gain(query.sketch, sketches, noise))
    for number, group in enumerate(groups):
        places = [place for place, row in enumerate(rows.tolist()) if row in set(group.rows.tolist())]
        assert nats.num_comparable[number] == len(places) > 10
        assert close(float(nats.infogain[0, number]), oracles.info_gain(query.sketch, sketches[places], noise))
        assert close(float(nats.infoloss[0, number]), oracles.info_loss(query.sketch, sketches, places, noise), 1e-7)


def test_queries_of_several_classes_meet_their_own_rows(asked: Attributor) -> None:
    queries = [asked.resolve_query_row(row) for row in (1, 2, 1)]
    assert queries[0].label != queries[1].label
    groups = asked.groups("label").groups
    nats = asked.group_nats(GroupQuestion(queries, groups, relative_noise=1.0))
    assert nats.infogain is not None
    assert nats.infoloss is not None
    for place, query in enumerate(queries):
        others = [number for number in range(3) if number != query.label]
        assert nats.infogain[place, others].tolist() == [0.0, 0.0]
        assert nats.infoloss[place, others].tolist() == [0.0, 0.0]
        # Withdrawing the whole class leaves nothing: what is lost is what was known.
        label = query.label
        assert label is not None
        assert float(nats.available[place]) > 0
        assert close(float(nats.infogain[place, label]), float(nats.available[place]))
        assert close(float(nats.infoloss[place, label]), float(nats.available[place]))
    assert torch.equal(nats.infogain[0], nats.infogain[2])
    assert nats.noises[0].variance != nats.noises[1].variance
    assert nats.noises[0].relative == nats.noises[1].relative == 1.0


def test_what_is_excluded_leaves_d_and_the_groups(asked: Attributor) -> None:
    row = int(asked.index.view("own").partition_rows(1)[3])
    query = asked.resolve_train_row(row)
    rows, sketches = comparable(asked.index, query)
    gone = [int(rows[5]), int(rows[8])]
    kept = [place for place, each in enumerate(rows.tolist()) if each not in (row, *gone)]
    ids = [f"train:{each}" for each in rows[:20].tolist()]
    question = GroupQuestion(
        [query],
        asked.groups({"first": ids}).groups,
        noise_variance=2.0,
        exclude_ids=[f"train:{each}" for each in gone],
    )
    nats = asked.group_nats(question)
    left = [place for place, each in enumerate(kept) if each < 20]
    assert nats.num_comparable == (17,)
    assert nats.infogain is not None
    assert nats.infoloss is not None
    assert close(float(nats.infogain[0, 0]), oracles.info_gain(query.sketch, sketches[kept][left], 2.0))
    assert close(float(nats.infoloss[0, 0]), oracles.info_loss(query.sketch, sketches[kept], left, 2.0), 1e-7)


def test_the_removal_order_is_the_dense_greedy_s(classes: Attributor) -> None:
    queries = [classes.resolve_query_row(row) for row in range(4)]
    rows, sketches = comparable(classes.index, queries[0])
    groups = classes.groups("length").groups
    nats = classes.group_nats(GroupQuestion(queries, groups, relative_noise=0.1, removals=20))
    noise = nats.noises[0].variance
    gone: list[int] = []
    left = list(range(len(groups)))
    before = 0.0
    for step in nats.removal_order:
        costs = {
            number: sum(
                oracles.info_loss(query.sketch, sketches, sorted([*gone, *groups[number].rows.tolist()]), noise)
                for query in queries
            )
            / len(queries)
            for number in left
        }
        assert step.group == max(left, key=lambda number: costs[number])
        assert step.cumulative_nats == pytest.approx(costs[step.group], rel=1e-8)
        assert step.step_nats == pytest.approx(costs[step.group] - before, rel=1e-6)
        before = costs[step.group]
        gone += groups[step.group].rows.tolist()
        left.remove(step.group)
    assert left == []
    assert rows.numel() == len(gone)
    assert close(nats.removal_order[-1].cumulative_nats, float(nats.available.mean()))


def test_overlapping_groups_are_removed_once(classes: Attributor) -> None:
    query = classes.resolve_query_row(0)
    named = {"a": ["train:1", "train:2"], "b": ["train:2", "train:3"], "c": ["train:1", "train:2"]}
    groups = classes.groups(named).groups
    nats = classes.group_nats(GroupQuestion([query], groups, relative_noise=1.0, removals=3))
    _, sketches = comparable(classes.index, query)
    whole = oracles.info_loss(query.sketch, sketches, [1, 2, 3], nats.noises[0].variance)
    assert nats.removal_order[-1].cumulative_nats == pytest.approx(whole, rel=1e-7)
    assert nats.removal_order[-1].step_nats == 0.0


def test_only_what_is_asked_for_is_computed(classes: Attributor) -> None:
    query = classes.resolve_query_row(0)
    nats = classes.group_nats(GroupQuestion([query], classes.groups("source").groups, criteria=["infoloss"]))
    assert nats.infogain is None
    assert nats.infoloss is not None
    assert nats.noises[0].warning is not None
    assert nats.removal_order == ()


def test_wrong_questions_are_refused(classes: Attributor, tmp_path: Path) -> None:
    query, groups = classes.resolve_query_row(0), classes.groups("source").groups
    with pytest.raises(OptionError):
        classes.group_nats(GroupQuestion([query], groups, criteria=["infogian"]))
    with pytest.raises(NoiseTooSmallError) as small:
        classes.group_nats(GroupQuestion([query], groups, relative_noise=1e-14))
    assert small.value.pointer == "/relative_noise"
    classes.group_nats(GroupQuestion([query], groups, relative_noise=small.value.allowed["ge"]))
    with pytest.raises(UnknownIdError) as unknown:
        classes.group_nats(GroupQuestion([query], groups, exclude_ids=["train:999"]))
    assert unknown.value.pointer == "/exclude_ids/0"
    everything = [f"train:{row}" for row in range(120)]
    with pytest.raises(EmptyPoolError) as empty:
        classes.group_nats(GroupQuestion([query], groups, exclude_ids=everything))
    assert empty.value.pointer == "/exclude_ids"
    large = Attributor(small_index(tmp_path, dim=12, view="margin", spectra=False), max_computed_size=11)
    with pytest.raises(MissingSpectrumError, match="indexer derive"):
        large.group_nats(GroupQuestion([query], groups))


def test_a_stop_between_groups_stops(classes: Attributor) -> None:
    def stop() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        classes.group_nats(GroupQuestion([classes.resolve_query_row(0)], classes.groups("source").groups), stop)
