"""Checked at use, an index is opened by its manifest, norms and labels; any other file is read when first needed."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sketchstore import derived_manifest, errors, first_use
from sketchstore.codes_build import build_codes
from sketchstore.derived import StoredSpectrum
from sketchstore.errors import CorruptIndexError
from sketchstore.faiss_search import open_faiss
from sketchstore.layout import files_below
from sketchstore.reader import Index, open_index
from tests.index_factory import make_index, resign
from tests.reliability.damage import flip_bit, query_twice, rewrite_queries

READ_AT_OPEN = {"manifest.json", "derived/manifest.json", "columns/labels.npy", "columns/squared_norms.own.npy"}
SHARDS = ["sketches/own/00000.safetensors", "sketches/own/00001.safetensors"]
USES: dict[str, Callable[[Index], object]] = {
    SHARDS[0]: lambda index: index.view("own").sketches(slice(0, 1)),
    SHARDS[1]: lambda index: index.view("own").sketches(torch.tensor([40])),
    "columns/one_minus_p.npy": lambda index: index.column("one_minus_p"),
    "columns/predicted_labels.npy": lambda index: index.predicted_labels,
    "examples.parquet": lambda index: index.examples.id(0),
    "queries/examples.parquet": lambda index: index.queries.label(0),
    "queries/own.safetensors": lambda index: index.queries.sketch(0, "own", 0),
    "derived/faiss/own/label-1.faiss": lambda index: open_faiss(index, "own", 1),
    "derived/spectra/own/label-1.safetensors": lambda index: index.derived.spectrum("own", 1),
    "derived/codes/own/all.safetensors": lambda index: index.derived.codes("own"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    index = make_index(tmp_path_factory.mktemp("sound"), faiss="Flat")
    build_codes(index, "own")
    identity = torch.eye(16, dtype=torch.float64)
    index.derived.write_spectrum("own", 1, StoredSpectrum("gram", identity, identity[0], identity))
    return index.path


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "small"))


def spoil(path: Path) -> None:
    """Noise of the same length in every file that opening must not read: not even a header survives."""
    for file in set(files_below(path)) - READ_AT_OPEN:
        size = (path / file).stat().st_size
        (path / file).write_bytes(np.random.default_rng(0).bytes(size))


def test_every_file_has_a_use_or_is_read_at_open(sound):
    unused = {"derived/faiss/own/label-0.faiss", "derived/faiss/own/label-2.faiss", "derived/.lock", "build-log.jsonl"}
    assert set(files_below(sound)) - unused == READ_AT_OPEN | set(USES)


def test_opening_reads_the_manifest_norms_and_labels_and_no_more(path):
    spoil(path)
    index = open_index(path, check="use")
    assert (index.num_rows, index.labels.numel()) == (60, 60)
    assert index.view("own").squared_norms.sum() > 0


def test_opening_opens_no_other_file(path):
    program = f"""
import os, sys
opened = set()
sys.addaudithook(lambda event, named: opened.add(os.path.realpath(str(named[0]))) if event == "open" else None)
from sketchstore.reader import open_index
open_index({str(path)!r}, check="use")
print(*sorted(os.path.relpath(file, {str(path)!r}) for file in opened if file.startswith({str(path)!r} + "/")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == READ_AT_OPEN


@pytest.mark.parametrize("file", USES)
def test_a_damaged_file_is_refused_by_name_at_its_first_use_and_no_other_is(path, file):
    spoil_one = path / file
    spoil_one.write_bytes(bytes(spoil_one.stat().st_size))
    index = open_index(path, check="use")
    for other, use in USES.items():
        if other == file:
            for _ in range(2):  # a refusal stays
                with pytest.raises(CorruptIndexError) as caught:
                    use(index)
                assert caught.value.file == file
                assert "BLAKE3" in caught.value.message
        else:
            use(index)


@pytest.mark.parametrize("file", USES)
def test_a_restored_file_is_used_again(sound, path, file):
    flip_bit(path / file)
    index = open_index(path, check="use")
    with pytest.raises(CorruptIndexError):
        USES[file](index)
    shutil.copyfile(sound / file, path / "build-log.jsonl")
    (path / "build-log.jsonl").rename(path / file)
    USES[file](index)


@pytest.mark.parametrize("file", USES)
def test_eight_threads_at_the_first_use_check_once(path, file, monkeypatch):
    digested = []
    digest_file = first_use.digest_file
    started = threading.Barrier(8)

    def count(target: Path) -> str:
        digested.append(target.resolve())
        return digest_file(target)

    for module in (first_use, derived_manifest):
        monkeypatch.setattr(module, "digest_file", count)
    index = open_index(path, check="use")
    digested.clear()

    def use(_: int) -> None:
        started.wait()
        USES[file](index)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert digested == [path / file]
    USES[file](index)
    assert digested == [path / file]


def test_eight_threads_are_all_refused_a_damaged_file(path):
    flip_bit(path / SHARDS[0])
    index = open_index(path, check="use")

    def use(_: int) -> str:
        with pytest.raises(errors.DigestMismatchError) as caught:
            USES[SHARDS[0]](index)
        return caught.value.file

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(use, range(8))) == {SHARDS[0]}


def test_lengths_names_norms_and_labels_are_checked_at_open(path):
    with (path / SHARDS[0]).open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(errors.OversizedFileError):
        open_index(path, check="use")


@pytest.mark.parametrize("file", ["columns/labels.npy", "columns/squared_norms.own.npy"])
def test_a_flipped_bit_in_norms_or_labels_is_refused_at_open(path, file):
    flip_bit(path / file)
    with pytest.raises(errors.DigestMismatchError) as caught:
        open_index(path, check="use")
    assert caught.value.file == file


def test_missing_and_stale_derived_files_are_refused_at_open(path, tmp_path):
    (path / "derived/faiss/own/label-1.faiss").unlink()
    with pytest.raises(errors.CorruptDerivedError, match="missing"):
        open_index(path, check="use")
    other = make_index(tmp_path, name="other", seed=1)
    shutil.copytree(path / "derived", other.path / "derived")
    with pytest.raises(errors.StaleDerivedError):
        open_index(other.path, check="use")


def test_query_tables_that_were_published_wrong_are_refused_at_their_first_use(path):
    rewrite_queries(query_twice)(path)
    resign(path)
    index = open_index(path, check="use")
    with pytest.raises(errors.QueryTableError, match="twice"):
        index.queries.sketch(0, "own", 0)


def test_a_file_larger_than_memory_can_be_mapped(tmp_path):
    from sketchstore.arrays import map_tensor, tensor_header

    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
        pytest.skip("this system counts every private map as memory")
    rows = 1 << 32  # 4 TiB of float32, of which the disk holds the header
    header = tensor_header({"sketches": ("<f4", (rows, 256))})
    file = tmp_path / "large.safetensors"
    with file.open("wb") as stream:
        stream.write(header)
        try:
            stream.truncate(len(header) + rows * 1024)
        except OSError:
            pytest.skip("this file system has no files of 4 TiB")
    values = map_tensor(file, "large.safetensors", "sketches")
    assert (values.shape, float(values[-1, -1])) == ((rows, 256), 0.0)
    assert type(values) is np.ndarray
    values[0, 0] = 1.0  # copy on write: never in the file
    assert map_tensor(file, "large.safetensors", "sketches")[0, 0] == 0.0
