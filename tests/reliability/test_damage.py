"""Every way an index directory can be wrong: opening refuses it, verifying names the file and the kind, both once."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sketchstore import errors
from sketchstore.arrays import tensor_file_bytes
from sketchstore.codes_build import build_codes
from sketchstore.errors import CorruptIndexError, FormatVersionError, IndexNotFoundError, UnpublishedIndexError
from sketchstore.heads_build import build_heads
from sketchstore.reader import open_index, verify_index
from tests.index_factory import make_index, resign
from tests.reliability.damage import (
    CODES,
    FAISS,
    HEADS,
    LABELS,
    NORMS,
    QUERIES,
    SHARD,
    compare_otherwise,
    derived_of_another_index,
    edit_field,
    edit_manifest,
    edit_view,
    flip_bit,
    half_the_error,
    infinite_tail,
    lengthen,
    link_folder,
    longer_direction,
    lower_error,
    lowest_code,
    nan_direction,
    nan_error,
    negative_scale,
    not_finite_query,
    null_labels,
    other_code,
    other_head_code,
    other_head_scale,
    other_labels,
    other_scale,
    query_row_outside,
    query_twice,
    repeat_id,
    replace_by_link,
    replace_file,
    reverse_rows,
    rewrite_column,
    rewrite_derived,
    rewrite_queries,
    rewrite_shard,
    rewrite_table,
    set_row,
    shorter_tail,
    swap_shards,
    truncate,
    unlist_derived,
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    made = make_index(tmp_path_factory.mktemp("sound"), faiss="Flat")
    build_codes(made, "own")
    build_heads(made, "own")
    return made.path


@pytest.fixture
def index(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "small"))


@dataclass(frozen=True)
class Case:
    name: str
    damage: Callable[[Path], object]
    error: str
    file: str
    by_values: bool = False  # found only by reading the values, which verify does and open does not


MANIFEST = "manifest.json"
CASES = [
    Case("truncated", truncate, "TruncatedFileError", SHARD),
    Case("lengthened", lengthen, "OversizedFileError", "examples.parquet"),
    Case("flipped bit in a shard", lambda path: flip_bit(path / SHARD), "DigestMismatchError", SHARD),
    Case("flipped bit in labels", lambda path: flip_bit(path / LABELS), "DigestMismatchError", LABELS),
    Case("flipped bit in a header", lambda path: flip_bit(path / SHARD, 20), "DigestMismatchError", SHARD),
    Case("missing shard", lambda path: (path / SHARD).unlink(), "MissingFileError", SHARD),
    Case("missing manifest", lambda path: (path / MANIFEST).unlink(), "MissingFileError", MANIFEST),
    Case("missing column", lambda path: (path / NORMS).unlink(), "MissingFileError", NORMS),
    Case("extra file", replace_file("sketches/own/x", b"x", sign=False), "ExtraFileError", "sketches/own/x"),
    Case("extra file at the top", replace_file("notes.txt", b"x", sign=False), "ExtraFileError", "notes.txt"),
    Case("empty folder", lambda path: (path / "more").mkdir(), "ExtraFileError", "more"),
    Case("empty folder among the shards", lambda path: (path / "sketches/margin").mkdir(), "ExtraFileError",
         "sketches/margin"),
    Case("linked shard", replace_by_link(SHARD), "SymbolicLinkError", SHARD),
    Case("linked FAISS", replace_by_link(FAISS), "SymbolicLinkError", FAISS),
    Case("linked manifest", replace_by_link(MANIFEST), "SymbolicLinkError", MANIFEST),
    Case("linked folder", link_folder, "SymbolicLinkError", "derived/more"),
    Case("own rows that all compare", compare_otherwise("own"), "ManifestFieldError", MANIFEST),
    Case("margins that compare by label", compare_otherwise("margin"), "ManifestFieldError", MANIFEST),
    Case("classes that compare by label", compare_otherwise("class"), "ManifestFieldError", MANIFEST),
    Case("custom rows that compare by label", compare_otherwise("custom"), "ManifestFieldError", MANIFEST),
    Case("swapped shards", swap_shards, "SwappedFilesError", SHARD),
    Case("edited manifest", edit_manifest, "ManifestEditedError", MANIFEST),
    Case("manifest is not JSON", replace_file(MANIFEST, b'{"format":', sign=False), "ManifestSyntaxError", MANIFEST),
    Case("manifest is a list", replace_file(MANIFEST, b"[]", sign=False), "ManifestSyntaxError", MANIFEST),
    Case("NaN in the manifest", replace_file(MANIFEST, b'{"a": NaN}', sign=False), "ManifestSyntaxError", MANIFEST),
    Case("infinity in the manifest", replace_file(MANIFEST, b'{"a": 1e999}', sign=False), "ManifestSyntaxError",
         MANIFEST),
    Case("lone surrogate", replace_file(MANIFEST, b'{"a": "\\ud800"}', sign=False), "ManifestSyntaxError", MANIFEST),
    Case("manifest is not text", replace_file(MANIFEST, b"\xff\xfe", sign=False), "ManifestSyntaxError", MANIFEST),
    Case("deep manifest", replace_file(MANIFEST, b"[" * 10**5, sign=False), "ManifestSyntaxError", MANIFEST),
    Case("unknown manifest field", edit_field(surprise=1), "ManifestFieldError", MANIFEST),
    Case("string for a number", edit_field(num_rows="60"), "ManifestFieldError", MANIFEST),
    Case("manifest row count", edit_field(num_rows=59), "ManifestFieldError", MANIFEST),
    Case("manifest dimension", edit_field(sketch_dim=8), "ManifestFieldError", MANIFEST),
    Case("path out of the directory", edit_field(files={"../x": {"bytes": 0, "blake3": "0" * 64}}),
         "ManifestFieldError", MANIFEST),
    Case("other dtype", edit_field(dtype="float16"), "DtypeMismatchError", SHARD),
    Case("other shape", rewrite_shard(np.zeros((31, 16), np.float32)), "ShapeMismatchError", SHARD),
    Case("transposed", rewrite_shard(np.zeros((16, 32), np.float32)), "ShapeMismatchError", SHARD),
    Case("header that is no header", replace_file(SHARD, b"\xff" * 64), "FileHeaderError", SHARD),
    Case("empty shard", replace_file(SHARD, b""), "FileHeaderError", SHARD),
    Case("tensor of another name", replace_file(SHARD, tensor_file_bytes({"x": np.zeros(1)})), "FileHeaderError",
         SHARD),
    Case("column that is no npy", replace_file(LABELS, b"labels"), "FileHeaderError", LABELS),
    Case("pickled column", lambda path: (np.save(path / LABELS, np.array([{}] * 60, object)), resign(path)),
         "FileHeaderError", LABELS),
    Case("table that is no Parquet", replace_file("examples.parquet", b"PAR1"), "FileHeaderError", "examples.parquet"),
    Case("float labels", rewrite_column(LABELS, lambda values: values.astype(float)), "DtypeMismatchError", LABELS),
    Case("short labels", rewrite_column(LABELS, lambda values: values[:-1]), "ShapeMismatchError", LABELS),
    Case("labels against their counts", rewrite_column(LABELS, set_row(0, 7)), "LabelMismatchError", LABELS),
    Case("label below -1", rewrite_column(LABELS, set_row(0, -2)), "LabelMismatchError", LABELS),
    Case("labels against the table", rewrite_table("examples.parquet", other_labels), "LabelMismatchError",
         "examples.parquet", by_values=True),
    Case("no labels in the table", rewrite_table("examples.parquet", null_labels), "LabelMismatchError",
         "examples.parquet", by_values=True),
    Case("table too short", rewrite_table("examples.parquet", lambda table: table.slice(0, 59)), "RowCountError",
         "examples.parquet"),
    Case("table in another order", rewrite_table("examples.parquet", reverse_rows), "RowCountError",
         "examples.parquet", by_values=True),
    Case("table without ids", rewrite_table("examples.parquet", lambda table: table.drop_columns("id")),
         "ExampleTableError", "examples.parquet"),
    Case("table with a stranger", rewrite_table("examples.parquet", lambda table: table.append_column(
        "secret", pa.array([1] * 60))), "ExampleTableError", "examples.parquet"),
    Case("repeated ids", rewrite_table("examples.parquet", repeat_id), "ExampleTableError", "examples.parquet",
         by_values=True),
    Case("NaN norm", rewrite_column(NORMS, set_row(5, np.nan)), "NotFiniteValueError", NORMS),
    Case("negative norm", rewrite_column(NORMS, set_row(5, -1.0)), "NotFiniteValueError", NORMS),
    Case("NaN sketch", rewrite_shard(np.full((32, 16), np.nan, np.float32)), "NotFiniteValueError", SHARD,
         by_values=True),
    Case("infinite column", rewrite_column("columns/one_minus_p.npy", set_row(1, np.inf)), "NotFiniteValueError",
         "columns/one_minus_p.npy", by_values=True),
    Case("NaN query", rewrite_queries(not_finite_query), "NotFiniteValueError", QUERIES, by_values=True),
    Case("other sketches", rewrite_shard(np.ones((32, 16), np.float32)), "NormMismatchError", NORMS, by_values=True),
    Case("other norms", rewrite_column(NORMS, set_row(5, 1.0)), "NormMismatchError", NORMS),
    Case("other mean", edit_view(mean_squared_norm=1.0), "NormMismatchError", NORMS),
    Case("other scale", edit_view(scale_exponent=1), "NormMismatchError", NORMS, by_values=True),
    Case("query row outside", rewrite_queries(query_row_outside), "QueryTableError", QUERIES),
    Case("query given twice", rewrite_queries(query_twice), "QueryTableError", QUERIES),
    Case("flipped bit in FAISS", lambda path: flip_bit(path / FAISS), "CorruptDerivedError", FAISS),
    Case("missing FAISS", lambda path: (path / FAISS).unlink(), "CorruptDerivedError", FAISS),
    Case("truncated FAISS", lambda path: (path / FAISS).write_bytes(b"IxFI"), "CorruptDerivedError", FAISS),
    Case("unlisted FAISS", unlist_derived, "CorruptDerivedError", FAISS, by_values=True),
    Case("flipped bit in codes", lambda path: flip_bit(path / CODES, 1500), "CorruptDerivedError", CODES),
    Case("missing codes", lambda path: (path / CODES).unlink(), "CorruptDerivedError", CODES),
    Case("truncated codes", lambda path: (path / CODES).write_bytes(b"8"), "CorruptDerivedError", CODES),
    Case("another code", rewrite_derived(CODES, other_code), "CorruptDerivedError", CODES, by_values=True),
    Case("another scale of codes", rewrite_derived(CODES, other_scale), "CorruptDerivedError", CODES, by_values=True),
    Case("an error that is no bound", rewrite_derived(CODES, lower_error), "CorruptDerivedError", CODES,
         by_values=True),
    Case("NaN error of codes", rewrite_derived(CODES, nan_error), "CorruptDerivedError", CODES, by_values=True),
    Case("stale codes", derived_of_another_index, "StaleDerivedError", CODES),
    Case("flipped bit in heads", lambda path: flip_bit(path / HEADS, 1500), "CorruptDerivedError", HEADS),
    Case("missing heads", lambda path: (path / HEADS).unlink(), "CorruptDerivedError", HEADS),
    Case("truncated heads", lambda path: (path / HEADS).write_bytes(b"8"), "CorruptDerivedError", HEADS),
    Case("another code of heads", rewrite_derived(HEADS, other_head_code), "CorruptDerivedError", HEADS,
         by_values=True),
    Case("code of heads that is -128", rewrite_derived(HEADS, lowest_code), "CorruptDerivedError", HEADS,
         by_values=True),
    Case("another scale of heads", rewrite_derived(HEADS, other_head_scale), "CorruptDerivedError", HEADS,
         by_values=True),
    Case("negative scale of heads", rewrite_derived(HEADS, negative_scale), "CorruptDerivedError", HEADS,
         by_values=True),
    Case("error of heads that is no bound", rewrite_derived(HEADS, half_the_error), "CorruptDerivedError", HEADS,
         by_values=True),
    Case("NaN error of heads", rewrite_derived(HEADS, nan_error), "CorruptDerivedError", HEADS, by_values=True),
    Case("a direction that is too long", rewrite_derived(HEADS, longer_direction), "CorruptDerivedError", HEADS,
         by_values=True),
    Case("NaN direction", rewrite_derived(HEADS, nan_direction), "CorruptDerivedError", HEADS, by_values=True),
    Case("a tail that is no bound", rewrite_derived(HEADS, shorter_tail), "CorruptDerivedError", HEADS, by_values=True),
    Case("infinite tail", rewrite_derived(HEADS, infinite_tail), "CorruptDerivedError", HEADS, by_values=True),
    Case("stale heads", derived_of_another_index, "StaleDerivedError", HEADS),
    Case("stale FAISS", derived_of_another_index, "StaleDerivedError", FAISS),
    Case("derived manifest is not JSON", replace_file("derived/manifest.json", b"{", sign=False),
         "DerivedManifestError", "derived/manifest.json"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_damage_is_refused_by_open_and_named_by_verify(index, case):
    case.damage(index)
    kind = getattr(errors, case.error).kind
    found = verify_index(index)
    assert (case.file, kind) in {(damage.file, damage.kind) for damage in found}, found
    if case.by_values:
        return
    with pytest.raises(getattr(errors, case.error)) as caught:
        open_index(index)
    assert type(caught.value).__name__ == case.error
    assert caught.value.file == case.file or case.error == "StaleDerivedError"  # the first of several stale files
    assert str(caught.value).startswith(caught.value.file)


def leaves(kind: type[CorruptIndexError]) -> set[str]:
    below = kind.__subclasses__()
    return {kind.__name__} if not below else set().union(*map(leaves, below))


def test_every_error_class_for_damage_has_a_case():
    assert leaves(CorruptIndexError) - {"DigestMismatchError"} <= {case.error for case in CASES}


def test_the_tree_in_the_errors_module_names_every_class():
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert {name for name in classes if name not in errors.__doc__} == set()


def test_kinds_of_damage_are_distinct():
    def below(kind: type[CorruptIndexError]) -> list[type[CorruptIndexError]]:
        return [kind, *(inner for each in kind.__subclasses__() for inner in below(each))]

    kinds = [kind.kind for kind in below(CorruptIndexError)]
    assert len(set(kinds)) == len(kinds)


def test_a_sound_index_has_no_damage(sound):
    assert verify_index(sound) == []
    open_index(sound)
    open_index(sound, check="sizes")


def test_verify_lists_all_damage_and_not_only_the_first(index):
    truncate(index)
    flip_bit(index / NORMS)
    flip_bit(index / "examples.parquet")
    flip_bit(index / FAISS)
    (index / "stranger").touch()
    assert {(damage.file, damage.kind) for damage in verify_index(index)} == {
        (SHARD, "truncated"),
        (NORMS, "digest"),
        ("examples.parquet", "digest"),
        (FAISS, "derived_corrupt"),
        ("stranger", "extra"),
    }


@pytest.mark.parametrize("version", [0, 3, 2.0, "1", None, True])
def test_another_format_version_is_refused_and_named(index, version):
    resign(index, {"format_version": version})
    with pytest.raises(FormatVersionError, match=rf"format_version is {version!r}.*knows 1"):
        open_index(index)
    assert [damage.kind for damage in verify_index(index)] == ["format_version"]


def test_another_format_is_refused(index):
    resign(index, {"format": "bergson"})
    with pytest.raises(FormatVersionError, match="bergson"):
        open_index(index)


def test_check_sizes_finds_truncation_but_trusts_equal_lengths(index):
    flip_bit(index / SHARD)
    open_index(index, check="sizes")
    truncate(index)
    with pytest.raises(errors.TruncatedFileError):
        open_index(index, check="sizes")


def test_check_sizes_reads_no_sketches(index):
    (index / SHARD).chmod(0)
    try:
        with (index / SHARD).open("rb"):
            pytest.skip("this user may read everything")
    except PermissionError:
        open_index(index, check="sizes")


def test_damaged_derived_entries_can_be_set_aside(index):
    flip_bit(index / FAISS)
    opened = open_index(index, derived=False)
    with pytest.raises(errors.CorruptDerivedError):
        opened.derived.file("faiss", "own", 1)
    opened.derived.file("faiss", "own", 2)


def test_a_derived_file_damaged_after_opening_is_refused_before_it_is_parsed(index):
    opened = open_index(index)
    opened.derived.file("faiss", "own", 1)
    flip_bit(index / FAISS)
    with pytest.raises(errors.CorruptDerivedError):
        opened.derived.file("faiss", "own", 1)


def test_no_directory_no_index(tmp_path):
    with pytest.raises(IndexNotFoundError, match="indexer build"):
        open_index(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(IndexNotFoundError, match="not an index directory"):
        open_index(tmp_path / "empty")


def test_an_unfinished_build_is_not_an_index(tmp_path):
    (tmp_path / "small.partial").mkdir()
    with pytest.raises(UnpublishedIndexError, match="--resume"):
        open_index(tmp_path / "small.partial")
