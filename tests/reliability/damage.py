"""Ways to damage an index directory: by accident, or as a writer with a bug would have published it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from sketchstore.arrays import npy_header, tensor_file_bytes
from sketchstore.codes_build import build_codes
from sketchstore.digests import digest_file, digest_json
from sketchstore.heads_build import build_heads
from tests.index_factory import make_index, resign

SHARD = "sketches/own/00000.safetensors"
LABELS = "columns/labels.npy"
NORMS = "columns/squared_norms.own.npy"
QUERIES = "queries/own.safetensors"
FAISS = "derived/faiss/own/label-1.faiss"
CODES = "derived/codes/own/all.safetensors"
HEADS = "derived/heads/own/all.safetensors"


def flip_bit(file: Path, position: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def truncate(path: Path) -> None:
    (path / SHARD).write_bytes((path / SHARD).read_bytes()[:-7])


def lengthen(path: Path) -> None:
    with (path / "examples.parquet").open("ab") as stream:
        stream.write(b"more")


def swap_shards(path: Path) -> None:
    first, second = path / SHARD, path / "sketches/own/00001.safetensors"
    content = first.read_bytes()
    shutil.copy(second, first)
    second.write_bytes(content)


def edit_manifest(path: Path) -> None:
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))


def edit_field(**changes: object) -> Callable[[Path], None]:
    """A manifest changed and signed again: wrong, but not by accident."""
    return lambda path: resign(path, changes)


def edit_view(**changes: object) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        views = json.loads((path / "manifest.json").read_text())["views"]
        views["own"] |= changes
        resign(path, {"views": views})

    return edit


def rewrite_shard(values: np.ndarray) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        (path / SHARD).write_bytes(tensor_file_bytes({"sketches": values}))
        resign(path)

    return rewrite


def rewrite_column(file: str, edit: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        values = edit(np.load(path / file))
        (path / file).write_bytes(npy_header(values.dtype, values.shape) + values.tobytes())
        resign(path)

    return rewrite


def rewrite_table(file: str, edit: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        pq.write_table(edit(pq.read_table(path / file)), path / file)
        resign(path)

    return rewrite


def rewrite_queries(edit: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        tensors = load_file(path / QUERIES)
        edit(tensors)
        (path / QUERIES).write_bytes(
            tensor_file_bytes({name: tensors[name] for name in ("sketches", "query_rows", "target_labels")})
        )
        resign(path)

    return rewrite


def replace_file(file: str, content: bytes, sign: bool = True) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_bytes(content)
        if sign:
            resign(path)

    return replace


def set_row(row: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(values: np.ndarray) -> np.ndarray:
        values[row] = value
        return values

    return edit


def unlist_derived(path: Path) -> None:
    relist(path, lambda entries: entries.pop(FAISS.removeprefix("derived/")))


def relist(path: Path, edit: Callable[[dict[str, dict]], object]) -> None:
    """Change what derived/manifest.json lists, with its digest, as a program with a bug would."""
    listed = json.loads((path / "derived/manifest.json").read_text())
    edit(listed["entries"])
    listed["digest"] = digest_json(listed["entries"])
    (path / "derived/manifest.json").write_text(json.dumps(listed))


def derived_of_another_index(path: Path) -> None:
    """Copy derived/ from an index of other data: every file is sound, and none belongs here."""
    other = make_index(path.parent / "other", seed=1, faiss="Flat")
    build_codes(other, "own")
    build_heads(other, "own")
    shutil.rmtree(path / "derived")
    shutil.copytree(other.path / "derived", path / "derived")


def rewrite_derived(file: str, edit: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    """Codes or heads written and listed by a program with a bug: every digest is right."""

    def rewrite(path: Path) -> None:
        tensors = load_file(path / file)
        edit(tensors)
        names = ("basis", "codes", "scales", "errors", "tails")
        (path / file).write_bytes(tensor_file_bytes({name: tensors[name] for name in names if name in tensors}))
        relist(path, lambda entries: entries[file.removeprefix("derived/")].update(blake3=digest_file(path / file)))

    return rewrite


def other_code(tensors: dict[str, np.ndarray]) -> None:
    tensors["codes"][59, 15] ^= 1


def other_scale(tensors: dict[str, np.ndarray]) -> None:
    tensors["scales"][3] = np.nextafter(tensors["scales"][3], 1e9)


def lower_error(tensors: dict[str, np.ndarray]) -> None:
    tensors["errors"][40] *= 1 - 1e-9


def other_head_code(tensors: dict[str, np.ndarray]) -> None:
    tensors["codes"][59, 0] -= np.sign(tensors["codes"][59, 0])


def other_head_scale(tensors: dict[str, np.ndarray]) -> None:
    tensors["scales"][3] *= 1.001


def half_the_error(tensors: dict[str, np.ndarray]) -> None:
    tensors["errors"][40] /= 2


def lowest_code(tensors: dict[str, np.ndarray]) -> None:
    tensors["codes"][30, 0] = -128
    tensors["errors"][30] = 1e9


def negative_scale(tensors: dict[str, np.ndarray]) -> None:
    tensors["scales"][30] *= -1
    tensors["errors"][30] = 1e9


def longer_direction(tensors: dict[str, np.ndarray]) -> None:
    tensors["basis"][0] *= 1 + 1e-11


def nan_direction(tensors: dict[str, np.ndarray]) -> None:
    tensors["basis"][0, 3] = np.nan


def shorter_tail(tensors: dict[str, np.ndarray]) -> None:
    tensors["tails"][40] *= 1 - 1e-9


def infinite_tail(tensors: dict[str, np.ndarray]) -> None:
    tensors["tails"][40] = np.inf


def nan_error(tensors: dict[str, np.ndarray]) -> None:
    tensors["errors"][0] = np.nan


def replace_by_link(file: str) -> Callable[[Path], None]:
    """The same bytes, through a symbolic link to a place that others may write to."""

    def replace(path: Path) -> None:
        elsewhere = path.parent / "elsewhere"
        (path / file).rename(elsewhere)
        (path / file).symlink_to(elsewhere)

    return replace


def link_folder(path: Path) -> None:
    (path.parent / "more").mkdir()
    (path / "derived/more").symlink_to(path.parent / "more")


def compare_otherwise(view: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        other = make_index(path.parent / view, view=view).path
        shutil.rmtree(path)
        other.rename(path)
        views = json.loads((path / "manifest.json").read_text())["views"]
        for entry in views.values():
            entry["comparable"] = "all" if view == "own" else "label"
        resign(path, {"views": views})

    return edit


def null_labels(table: pa.Table) -> pa.Table:
    return table.set_column(2, "label", pa.array([None] * table.num_rows, pa.int64()))


def repeat_id(table: pa.Table) -> pa.Table:
    return table.set_column(1, "id", pa.array(["same"] * table.num_rows))


def reverse_rows(table: pa.Table) -> pa.Table:
    return table.set_column(0, "row", pa.array(range(table.num_rows)[::-1], pa.int64()))


def other_labels(table: pa.Table) -> pa.Table:
    return table.set_column(2, "label", pa.array([0] * table.num_rows, pa.int64()))


def not_finite_query(tensors: dict[str, np.ndarray]) -> None:
    tensors["sketches"][2, 3] = np.nan


def query_row_outside(tensors: dict[str, np.ndarray]) -> None:
    tensors["query_rows"][0] = 6


def query_twice(tensors: dict[str, np.ndarray]) -> None:
    for name in ("query_rows", "target_labels"):
        tensors[name][1] = tensors[name][0]
