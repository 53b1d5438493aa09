"""Withdrawn rows are in no answer of the next revision, and after a purge in no file."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sketchstore import remove, revising
from sketchstore.errors import (
    BuildInProgressError,
    CorruptIndexError,
    EveryRowRemovedError,
    NothingToPurgeError,
    PurgeError,
    UnknownIdError,
    UnknownRowError,
    UpkeepError,
)
from sketchstore.kept import Kept, places_in, ranges_of
from sketchstore.layout import files_below
from sketchstore.reader import Index, open_index, verify_index
from sketchstore.remove import remove_rows
from sketchstore.unfinished import take_lock
from tests.index_factory import make_index, png, resign

WITHDRAWN = [0, 5, 6, 31, 32, 59]  # the ends, neighbours, and both sides of the border between two shards
IDS = [f"train:{row}" for row in WITHDRAWN]


def as_it_was(index: Index) -> Index:
    """A copy to compare with: the directory itself is about to become another revision's."""
    return open_index(shutil.copytree(index.path, index.path.parent / "before" / index.name))


def without(index: Index, rows: list[int]) -> np.ndarray:
    return np.delete(np.arange(index.num_rows), rows)


def assert_rows_are(found: Index, index: Index, left: np.ndarray) -> None:
    rows = torch.from_numpy(left)
    assert found.num_rows == len(left)
    assert torch.equal(found.labels, index.labels[rows])
    for name, view in index.views.items():
        ours = found.view(name)
        assert torch.equal(ours.sketches(slice(None)), view.sketches(rows))
        assert torch.equal(ours.squared_norms, view.squared_norms[rows])
        assert ours.mean_squared_norm() == pytest.approx(float(view.squared_norms[rows].mean()), rel=1e-12)
        for label in index.labels.unique().tolist():
            chosen = found.labels == label
            assert torch.equal(ours.partition_rows(label), torch.nonzero(chosen).squeeze(1))
            assert ours.mean_squared_norm(label) == pytest.approx(float(ours.squared_norms[chosen].mean()), rel=1e-12)
    assert torch.equal(found.column("one_minus_p"), index.column("one_minus_p")[rows])
    assert torch.equal(found.predicted_labels, index.predicted_labels[rows])
    for row, old in enumerate(left.tolist()):
        assert found.examples.id(row) == f"train:{old}"
        assert found.examples.row(f"train:{old}") == row
        assert found.examples.label(row) == index.examples.label(old)
        assert found.examples.metadata(row) == index.examples.metadata(old)
        assert found.examples.preview(row) == index.examples.preview(old)
    values, places = found.examples.values("source")
    assert [values[place] for place in places.tolist()] == ["web" if old % 2 else "book" for old in left.tolist()]
    books = found.examples.where({"source": "book"}).tolist()
    assert [found.examples.id(row) for row in books] == [f"train:{old}" for old in left if old % 2 == 0]


@pytest.mark.parametrize("purge", [False, True], ids=["listed", "purged"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("view", ["own", "margin", "class"])
def test_the_next_revision_holds_every_other_row_as_it_was(tmp_path, view, dtype, purge):
    index = make_index(tmp_path, view=view, dtype=dtype)
    before = as_it_was(index)
    report = remove_rows(index, IDS, purge=purge)
    found = open_index(index.path)
    assert found.revision == report.revision != index.revision
    assert (report.removed_rows, report.num_rows, report.purged_rows) == (6, 54, 6 if purge else 0)
    assert_rows_are(found, before, without(before, WITHDRAWN))
    assert verify_index(index.path) == []
    assert not (index.path.parent / "small.partial").exists()


def test_slices_blocks_and_gathers_agree_where_rows_are_missing(tmp_path):
    index = make_index(tmp_path)
    before = as_it_was(index)
    remove_rows(index, IDS)
    view = open_index(index.path).view("own")
    every = before.view("own").sketches(torch.from_numpy(without(index, WITHDRAWN)))
    for start, stop in ((0, 0), (0, 1), (3, 8), (25, 32), (0, 54), (53, 54), (10, 20), (60, 70)):
        assert torch.equal(view.sketches(slice(start, stop)), every[start:stop])
    assert torch.equal(torch.cat([block for _, block in view.blocks(7)]), every)
    with pytest.raises(UnknownRowError, match="rows are 0 to 53"):
        view.sketches(torch.tensor([54]))


def test_removing_twice_and_purging_later_is_removing_at_once(tmp_path):
    index = make_index(tmp_path, num_rows=60)
    (tmp_path / "other").mkdir()
    twin = make_index(tmp_path / "other", num_rows=60)
    remove_rows(index, ["train:7", "train:8"])
    second = open_index(index.path)
    remove_rows(second, ["train:9", "train:40"])
    report = remove_rows(open_index(index.path), [], purge=True)
    assert (report.removed_rows, report.purged_rows) == (0, 4)
    remove_rows(twin, ["train:40", "train:7", "train:9", "train:8"], purge=True)
    # The same bytes; shards are cut where rows were removed, whenever that was.
    for file in files_below(index.path):
        if file != "build-log.jsonl":
            assert (index.path / file).read_bytes() == (twin.path / file).read_bytes(), file


def test_nothing_but_the_manifest_is_written_where_rows_are_only_listed(tmp_path):
    index = make_index(tmp_path)
    before = {file: (index.path / file).stat().st_ino for file in index.manifest.files}
    report = remove_rows(index, IDS)
    assert report.rewritten == []
    assert {file: (index.path / file).stat().st_ino for file in index.manifest.files} == before
    assert json.loads((index.path / "manifest.json").read_text())["removed"] == [[0, 1], [5, 7], [31, 33], [59, 60]]


def every_value(path: Path):
    """Every value that a file holds: its raw bytes, and for a table every cell, uncompressed."""
    yield path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        yield table.schema.to_string().encode()
        for column in table.columns:
            for cell in column.to_pylist():
                yield cell if isinstance(cell, bytes) else str(cell).encode()


def traces(path: Path, needles: dict[str, bytes]) -> set[tuple[str, str]]:
    return {
        (file, what)
        for file in files_below(path)
        for value in every_value(path / file)
        for what, needle in needles.items()
        if needle in value
    }


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_purge_leaves_no_byte_of_a_row_in_any_file(tmp_path, dtype):
    secret = 32
    rng = np.random.default_rng(3)
    values = {"own": rng.standard_normal((60, 16)).astype(np.float32)}
    index = make_index(tmp_path, dtype=dtype, sketches=values, faiss="Flat")
    stored = index.view("own").stored(slice(secret, secret + 1))
    needles = {
        "sketch": stored.tobytes(),
        "as float32": (stored.astype(np.float32)).tobytes(),
        "squared norm": index.view("own").squared_norms[secret : secret + 1].numpy().tobytes(),
        "id": f"train:{secret}".encode(),
        "preview": png(secret),
    }
    assert {what for _, what in traces(index.path, needles)} >= {"sketch", "squared norm", "id", "preview"}
    remove_rows(index, [f"train:{secret}"])
    assert ("sketches/own/00001.safetensors", "sketch") in traces(index.path, needles)  # listed, and still there
    remove_rows(open_index(index.path), [], purge=True)
    assert traces(index.path, needles) == set()
    assert verify_index(index.path) == []
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("writer", ["write_shard", "write_column", "copy_tables"])
def test_a_purge_that_leaves_something_behind_is_found_and_not_published(tmp_path, monkeypatch, writer):
    index = make_index(tmp_path)
    write = getattr(remove, writer)

    def careless(path, parts):
        if writer == "copy_tables":
            [(table, _)] = parts
            return write(path, [(table, Kept(index.num_rows))])
        written = write(path, parts)
        with path.open("ab") as stream:
            stream.write(parts[0][:1].tobytes())  # a row too many, behind the end
        return written

    monkeypatch.setattr(remove, writer, careless)
    with pytest.raises(PurgeError, match="does not hold exactly the rows that stay; nothing was published"):
        remove_rows(index, ["train:3"], purge=True)
    assert open_index(index.path).revision == index.revision
    assert verify_index(index.path) == []


def test_a_purge_that_writes_a_row_in_the_place_of_another_is_found(tmp_path, monkeypatch):
    index, write = make_index(tmp_path), remove.write_shard
    monkeypatch.setattr(remove, "write_shard", lambda path, parts: write(path, [parts[0][::-1]]))
    with pytest.raises(PurgeError, match=r"sketches/own/00000\.safetensors"):
        remove_rows(index, ["train:3"], purge=True)


def test_a_purge_rewrites_only_shards_that_hold_a_removed_row(tmp_path):
    index = make_index(tmp_path)  # 60 rows in shards of 32
    before = (index.path / "sketches/own/00001.safetensors").stat().st_ino
    remove_rows(index, ["train:3"], purge=True)
    assert (index.path / "sketches/own/00001.safetensors").stat().st_ino == before
    assert [shard.rows for shard in open_index(index.path).manifest.views["own"].shards] == [31, 28]


def test_a_shard_of_removed_rows_only_is_gone_and_the_next_takes_its_number(tmp_path):
    index = make_index(tmp_path)
    before = as_it_was(index)
    remove_rows(index, [f"train:{row}" for row in range(32)], purge=True)
    found = open_index(index.path)
    assert [shard.file for shard in found.manifest.views["own"].shards] == ["sketches/own/00000.safetensors"]
    assert_rows_are(found, before, np.arange(32, 60))


def test_a_label_whose_rows_are_all_gone_is_no_label(tmp_path):
    index = make_index(tmp_path)
    gone = [f"train:{row}" for row in torch.nonzero(index.labels == 1).squeeze(1).tolist()]
    remove_rows(index, gone)
    found = open_index(index.path)
    assert set(found.manifest.labels.counts) == {"0", "2"}
    assert found.view("own").partitions == [0, 2]
    assert verify_index(index.path) == []


@pytest.mark.parametrize("purge", [False, True])
def test_queries_that_have_a_withdrawn_id_go_with_it(tmp_path, purge):
    index = make_index(tmp_path)
    table = pq.read_table(index.path / "examples.parquet")
    ids = pa.array(["query:2" if id == "train:4" else id for id in table.column("id").to_pylist()])
    pq.write_table(table.set_column(table.schema.get_field_index("id"), "id", ids), index.path / "examples.parquet")
    resign(index.path)
    index = open_index(index.path)
    before = as_it_was(index)
    report = remove_rows(index, ["query:2"], purge=purge)
    assert report.removed_queries == 1
    found = open_index(index.path)
    assert found.queries.count == before.queries.count - 1
    assert [found.queries.examples.id(row) for row in range(5)] == [f"query:{n}" for n in (0, 1, 3, 4, 5)]
    assert torch.equal(found.queries.sketch(2, "own", 0), before.queries.sketch(3, "own", 0))
    assert verify_index(index.path) == []


def test_derived_entries_of_rows_that_are_gone_are_gone(tmp_path):
    index = make_index(tmp_path, faiss="Flat")
    derived = Path(shutil.copytree(index.path / "derived", tmp_path / "old"))
    remove_rows(index, ["train:0"])
    assert not (index.path / "derived").exists()
    shutil.copytree(derived, index.path / "derived")  # as somebody might who misses them
    assert {damage.kind for damage in verify_index(index.path)} == {"derived_stale"}


def test_a_list_of_withdrawals_can_be_handed_in_again(tmp_path):
    index = make_index(tmp_path)
    remove_rows(index, ["train:1", "train:4"])
    report = remove_rows(open_index(index.path), ["train:1", "train:4", "train:5"])
    assert (report.removed_rows, report.num_rows) == (1, 57)
    assert "withdrawn before: 'train:1', 'train:4'" in report.notes
    again = open_index(index.path)
    with pytest.raises(UnknownIdError, match="train:60"):
        remove_rows(again, ["train:1", "train:60"])
    report = remove_rows(again, ["train:1", "train:5"])
    assert (report.revision, report.removed_rows, report.num_rows) == (again.revision, 0, 57)
    report = remove_rows(again, ["train:1", "train:5"], purge=True)
    assert (report.removed_rows, report.purged_rows, report.num_rows) == (0, 3, 57)
    with pytest.raises(UnknownIdError, match="train:1"):
        remove_rows(open_index(index.path), ["train:1"])


def test_what_cannot_be_removed_is_refused_and_nothing_changes(tmp_path):
    index = make_index(tmp_path)
    with pytest.raises(UnknownIdError, match="train:60"):
        remove_rows(index, ["train:1", "train:60"])
    with pytest.raises(NothingToPurgeError, match="no row is withdrawn"):
        remove_rows(index, [], purge=True)
    with pytest.raises(EveryRowRemovedError, match="delete the directory"):
        remove_rows(index, [f"train:{row}" for row in range(60)])
    remove_rows(index, ["train:1"])
    with pytest.raises(UpkeepError, match="changed by somebody else"):
        remove_rows(index, ["train:2"])
    found = open_index(index.path)
    partial = tmp_path / "small.partial"
    partial.mkdir()
    lock = take_lock(partial)
    with pytest.raises(BuildInProgressError):
        remove_rows(found, ["train:2"])
    lock.release()
    assert open_index(index.path).revision == found.revision


@pytest.mark.parametrize("purge", [False, True])
def test_killed_before_publication_the_old_index_is_whole(tmp_path, purge):
    index = make_index(tmp_path)
    program = f"""
import os
from sketchstore import revising
from sketchstore.reader import open_index
from sketchstore.remove import remove_rows
revising.take_name = lambda *arguments: os._exit(9)
remove_rows(open_index({str(index.path)!r}), {IDS!r}, purge={purge})
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert (tmp_path / "small.partial" / revising.DRAFT / "manifest.json").exists()
    assert verify_index(index.path) == []
    assert open_index(index.path).revision == index.revision
    remove_rows(open_index(index.path), IDS, purge=purge)
    assert open_index(index.path).num_rows == 54
    assert not (tmp_path / "small.partial").exists()


@pytest.mark.parametrize("check", ["use", "sizes", "digests"])
def test_an_open_index_never_shows_another_revisions_files(tmp_path, check):
    index = make_index(tmp_path, faiss="Flat")
    early, late = open_index(index.path, check=check), open_index(index.path, check=check)
    expected = [early.examples.id(row) for row in range(60)]
    values = early.view("own").sketches(slice(None))
    remove_rows(open_index(index.path), IDS, purge=True)
    assert [early.examples.id(row) for row in range(60)] == expected
    assert torch.equal(early.view("own").sketches(slice(None)), values)
    assert len(open_index(index.path).examples.column("id")) == 54
    # What was not opened before is missing; it is not the new revision's.
    for use in (
        lambda: late.examples.id(3),
        lambda: late.view("own").sketches(slice(None)),
        lambda: late.column("labels"),
    ):
        with pytest.raises((CorruptIndexError, FileNotFoundError)):
            use()
    assert late.derived.entries() == {}


def test_ranges_and_places_are_two_spellings_of_a_set():
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 5, 40):
        for _ in range(20):
            gone = np.sort(rng.choice(40, size=size, replace=False))
            ranges = ranges_of(gone.tolist())
            assert np.array_equal(places_in(ranges), gone)
            kept, left = Kept(40 - size, ranges), np.delete(np.arange(40), gone)
            if size < 40:
                assert np.array_equal(kept.places(np.arange(40 - size)), left)
                assert np.array_equal(kept.take(np.arange(40)), left)
            for start, stop in ((0, 40), (3, 9), (39, 40), (0, 0)):
                assert np.array_equal(kept.mask(start, stop), np.isin(np.arange(start, stop), left))
