"""Everything that publishes, each on small index directories in a folder: what the kill and disk tests interrupt."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from indexer.derive import derive
from sketchstore.default_noise import store_default_noise
from sketchstore.errors import IndexDirectoryError
from sketchstore.manifest import Source
from sketchstore.merge import merge_indexes
from sketchstore.reader import Index, open_index
from sketchstore.remove import remove_rows
from sketchstore.writer import IndexWriter
from tests.index_factory import make_contents, make_plan, train_rows, write_contents


def write_index(path: Path, *, first_id: int = 0, rows: int = 40, overwrite: bool = False) -> None:
    """Build an index of ``rows`` rows with the ids from train:``first_id`` on, or continue to."""
    plan = make_plan(name=path.name, num_rows=rows, dim=8, dtype="float16", block_rows=16, shard_rows=32, view="margin")
    contents = make_contents(plan, seed=first_id)
    with IndexWriter.create(path, plan, resume=True, overwrite=overwrite) as writer:
        write_contents(writer, contents)
        writer.write_examples(train_rows([-1] * first_id + contents.labels.tolist())[first_id:])
        writer.log({"event": "written"})
        writer.publish(distortion={"pairs": 3}, default_relative_noise=0.5)


def opened(path: Path) -> Index:
    return open_index(path, check="use", derived=False)


def _join(folder: Path) -> None:
    # What `indexer append` does last, once the new rows are sketched; the whole of it: test_append.py.
    old, new = opened(folder / "points"), opened(folder / "more")
    manifest = new.manifest
    source = Source(
        recipe=manifest.recipe, first_row=40, rows=new.num_rows, block_rows=16, id_prefix="",
        data_order=manifest.digests.data_order,
    )  # fmt: skip
    merge_indexes([old, new], old.path, appended=source, log={"event": "append"})


@dataclass(frozen=True)
class Operation:
    """Something that publishes.

    Attributes:
        run: Does it, in the folder.
        subject: The index that it publishes, or the next revision of.
        already: What is said when it is asked for again and done already; None where it is done again.
        derives: Whether it writes derived/ only, and the revision stays.
    """

    run: Callable[[Path], object]
    subject: str = "points"
    already: str | None = None
    derives: bool = False


OPERATIONS = {
    "build": Operation(lambda folder: write_index(folder / "built"), "built", already="already published"),
    "overwrite": Operation(lambda folder: write_index(folder / "points", rows=24, overwrite=True),
                           already="already published"),
    "join": Operation(_join, already="ids of its own"),
    "merge": Operation(lambda folder: merge_indexes([opened(folder / n) for n in ("points", "more")], folder / "both"),
                       "both", already="exists"),
    "remove": Operation(lambda folder: remove_rows(opened(folder / "points"), ["train:3", "train:35"]),
                        already="was withdrawn from the train"),
    "purge": Operation(lambda folder: remove_rows(opened(folder / "points"), ["train:3"], purge=True),
                       already="no example of the train"),
    "noise": Operation(lambda folder: store_default_noise(opened(folder / "points"), 0.25, {"method": "gp_evidence"})),
    "derive": Operation(lambda folder: derive(opened(folder / "points"), rebuild=True), derives=True),
}  # fmt: skip


def prepare(folder: Path) -> None:
    """Write the indexes that the operations start from: ``points``, with everything derived, and ``more``."""
    folder.mkdir(parents=True)
    write_index(folder / "points")
    write_index(folder / "more", first_id=40, rows=20)
    derive(opened(folder / "points"))


def publish(name: str, folder: Path) -> tuple[int, str]:
    """Do an operation as a command does it: exit status, and what went wrong."""
    try:
        OPERATIONS[name].run(folder)
    except IndexDirectoryError as error:
        return 1, f"error: {error}"
    except OSError as error:
        return 1, f"error: {error.filename}: {error.strerror}"
    return 0, ""


def copied(folder: Path, to: Path) -> Path:
    """Copy what an operation starts from, without making the files links of each other."""
    return Path(shutil.copytree(folder, to))
