"""The manifest of an index directory: what the sketches are, and the length and digest of every file (FORMAT.md)."""

import json
import math
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError, model_validator

from sketchstore.differences import first_difference
from sketchstore.digests import canonical_json, digest_json
from sketchstore.errors import (
    FormatVersionError,
    IncompatibleSketchError,
    ManifestEditedError,
    ManifestFieldError,
    ManifestSyntaxError,
    MissingFileError,
)
from sketchstore.kept import Kept, check_ranges

FORMAT = "nattribute-index"
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
MANIFEST = "manifest.json"
BUILD_LOG = "build-log.jsonl"
DERIVED = "derived"
REVISION_DIGITS = 32
NO_LABEL = -1
OWN = "own"
CURE = "Sketch the query with this index's manifest, or rebuild the index."

Comparable = Literal["label", "all"]
StorageDtype = Literal["float32", "float16"]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ViewName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
ColumnName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64})?$")]
LabelKey = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]*)$")]
FilePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the manifest: immutable, and closed to unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Parameter(Section):
    """One parameter tensor of the model, in the order in which the sketch reads it."""

    name: str
    shape: tuple[int, ...]
    ntk_scale: Finite


class Sketch(Section):
    """The sketching matrix: two sketches may meet in an inner product only if these agree."""

    family: str
    seed: int
    dim: Annotated[int, Field(ge=1)]
    num_parameters: Annotated[int, Field(ge=0)]
    parameters: tuple[Parameter, ...] = ()
    options: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _parameters_add_up(self) -> "Sketch":
        total = sum(math.prod(parameter.shape) for parameter in self.parameters)
        if self.parameters and total != self.num_parameters:
            raise ValueError(f"num_parameters is {self.num_parameters}, the listed parameters have {total}")
        return self

    def check_same(
        self, other: "Sketch", *, what: str = "the query", index: str = "this index", cure: str = CURE
    ) -> None:
        """Refuse a sketch that was made with another sketching matrix.

        Args:
            other: The sketch that ``what`` was made with.
            what: Name of the thing sketched, for the message.
            index: Name of the index, for the message.
            cure: What to do about it, for the message.

        Raises:
            IncompatibleSketchError: If family, seed, dim, options or parameters differ; it names the first.
        """
        for field in ("family", "seed", "dim", "options", "num_parameters", "parameters"):
            if getattr(self, field) == getattr(other, field):
                continue
            mine, theirs = first_difference(getattr(self, field), getattr(other, field))
            raise IncompatibleSketchError(
                f"{what} was sketched with {field} {theirs}, index {index!r} with {field} {mine}; inner products "
                f"between different sketching matrices mean nothing. {cure}"
            )


RECIPE_OPTIONS = "recipe"
"""Key of ``Measurement.options``: the recipe's options that have a part in what is measured."""


class Measurement(Section):
    """The scalar being explained."""

    name: str
    options: dict[str, JsonValue] = {}


class Recipe(Section):
    """The recipe that gave model and data; ``file_digest`` is of a user's recipe file."""

    name: str
    builtin: bool
    options: dict[str, JsonValue] = {}
    file_digest: Digest | None = None


class Source(Section):
    """Where rows came from: ``rows`` rows of a recipe's training set from row ``first_row`` on, ids with a prefix."""

    recipe: Recipe
    first_row: Annotated[int, Field(ge=0)]
    rows: Annotated[int, Field(ge=1)]
    block_rows: Annotated[int, Field(ge=1)]
    id_prefix: str
    data_order: Digest | None


class Build(Section):
    """What was fixed before the first row: rows per block, rows per shard, and all that decides bytes."""

    block_rows: Annotated[int, Field(ge=1)]
    shard_rows: Annotated[int, Field(ge=1)]
    compute_rows: Annotated[int, Field(ge=1)] = 1
    num_threads: Annotated[int, Field(ge=1)] = 1
    device: str = "cpu"
    versions: dict[str, str] = {}
    options: dict[str, JsonValue] = {}


class SourceDigests(Section):
    """Digests of what the sketches were made from."""

    weights: Digest | None = None
    data_order: Digest | None = None


class Shard(Section):
    """One file of consecutive rows of a view."""

    file: FilePath
    rows: Annotated[int, Field(ge=1)]


class ViewEntry(Section):
    """One view: stored value × 2**scale_exponent is the sketch in measurement units."""

    scale_exponent: Annotated[int, Field(ge=-1022, le=1023)]
    comparable: Comparable
    mean_squared_norm: NonNegative
    mean_squared_norm_by_label: dict[LabelKey, NonNegative]
    shards: tuple[Shard, ...]


class Labels(Section):
    """How many rows each label has; rows without a label are in no count."""

    counts: dict[LabelKey, Annotated[int, Field(ge=1)]]
    names: dict[LabelKey, str] | None = None


class Column(Section):
    """One .npy of per-row values."""

    dtype: Literal["int64", "float32", "float64"]
    shape: tuple[Annotated[int, Field(ge=0)], ...]


class Queries(Section):
    """The query set sketched at build: ``sketches`` maps a view to its number of stored sketches."""

    count: Annotated[int, Field(ge=0)]
    sketches: dict[ViewName, Annotated[int, Field(ge=0)]]


class FileEntry(Section):
    """Length and BLAKE3 of one file."""

    bytes: Annotated[int, Field(ge=0)]
    blake3: Digest


class Manifest(Section):
    """The whole manifest. What version 2 added has defaults, which are what a manifest of version 1 says."""

    format: Literal["nattribute-index"]
    format_version: Literal[1, 2]
    name: str
    revision: Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{REVISION_DIGITS}}}$")]
    num_rows: Annotated[int, Field(ge=1)]
    sketch_dim: Annotated[int, Field(ge=1)]
    dtype: StorageDtype
    sketch: Sketch
    measurement: Measurement
    views: dict[ViewName, ViewEntry]
    labels: Labels
    columns: dict[ColumnName, Column]
    recipe: Recipe
    build: Build
    digests: SourceDigests
    default_relative_noise: Positive | None
    distortion: JsonValue
    queries: Queries | None
    files: dict[FilePath, FileEntry]
    removed: tuple[tuple[int, int], ...] = ()
    sources: tuple[Source, ...] = ()
    noise_tuning: JsonValue = None

    @property
    def kept(self) -> Kept:
        """The map from rows to places in the files."""
        return Kept(self.num_rows, self.removed)

    @property
    def num_places(self) -> int:
        """Rows that the files hold, the removed ones included."""
        return self.kept.num_places

    @model_validator(mode="after")
    def _facts_agree(self) -> "Manifest":
        if self.format_version == 1 and (self.removed or self.sources or self.noise_tuning is not None):
            raise ValueError("removed, sources and noise_tuning came with format_version 2")
        num_places = self.num_rows + sum(stop - first for first, stop in self.removed)
        check_ranges(self.removed, num_places)
        if self.sketch.dim != self.sketch_dim:
            raise ValueError(f"sketch_dim is {self.sketch_dim}, sketch.dim {self.sketch.dim}")
        if not self.views:
            raise ValueError("views is empty; an index has at least one view")
        for name, view in self.views.items():
            rows = sum(shard.rows for shard in view.shards)
            if rows != num_places:
                raise ValueError(
                    f"the shards of view {name!r} hold {rows} rows, num_rows and what is removed add up to {num_places}"
                )
            missing = [shard.file for shard in view.shards if shard.file not in self.files]
            if missing:
                raise ValueError(f"view {name!r} names {missing[0]}, which files does not list")
            check_comparable(name, view.comparable)
            if f"squared_norms.{name}" not in self.columns:
                raise ValueError(f"columns lacks squared_norms.{name}")
            if set(view.mean_squared_norm_by_label) != set(self.labels.counts):
                raise ValueError(f"mean_squared_norm_by_label of view {name!r} and labels.counts name other labels")
        if "labels" not in self.columns:
            raise ValueError("columns lacks labels")
        if sum(self.labels.counts.values()) > self.num_rows:
            raise ValueError(f"labels.counts add up to more than num_rows {self.num_rows}")
        for name, column in self.columns.items():
            if not column.shape or column.shape[0] != num_places:
                raise ValueError(f"column {name!r} has shape {list(column.shape)}, its first axis must be {num_places}")
        needed = {"examples.parquet"} | {column_file(name) for name in self.columns}
        if self.queries is not None:
            needed |= {"queries/examples.parquet"} | {query_file(view) for view in self.queries.sketches}
        elif QUERY_REPRESENTATIONS in self.files:
            raise ValueError(f"files lists {QUERY_REPRESENTATIONS}, and queries is null")
        if not needed <= set(self.files):
            raise ValueError(f"files does not list {sorted(needed - set(self.files))[0]}")
        if any(PurePosixPath(file).parts[0] == DERIVED or file in (MANIFEST, BUILD_LOG) for file in self.files):
            raise ValueError("files must not list manifest.json, build-log.jsonl or anything under derived/")
        return self


def check_comparable(view: str, comparable: Comparable) -> None:
    """Refuse a view whose rows are said to compare otherwise than its measurement lets them.

    Args:
        view: The view: ``own`` holds every row's own logit, any other one measurement of all rows.
        comparable: Between which rows inner products are said to mean something.

    Raises:
        ValueError: If it is not "label" for ``own``, "all" for any other.
    """
    allowed = "label" if view == OWN else "all"
    if comparable != allowed:
        raise ValueError(f"view {view!r} is comparable {comparable!r}, must be {allowed!r}")


def column_file(name: str) -> str:
    """Where a column lies.

    Args:
        name: The column.

    Returns:
        Path inside the index directory.
    """
    return f"columns/{name}.npy"


def query_file(view: str) -> str:
    """Where a view's query sketches lie.

    Args:
        view: The view.

    Returns:
        Path inside the index directory.
    """
    return f"queries/{view}.safetensors"


QUERY_REPRESENTATIONS = "queries/representations.npy"
"""Where the queries' penultimate features lie, in an index that has them."""


def shard_file(view: str, number: int) -> str:
    """Where a shard of a view lies.

    Args:
        view: The view.
        number: The shard, from 0.

    Returns:
        Path inside the index directory.
    """
    return f"sketches/{view}/{number:05d}.safetensors"


def revision_of(manifest: dict[str, Any]) -> str:
    """The revision a manifest must carry: the digest of everything in it but the revision itself.

    Args:
        manifest: The manifest as parsed from JSON, with or without ``revision``.

    Returns:
        32 hexadecimal digits.
    """
    return digest_json({key: value for key, value in manifest.items() if key != "revision"})[:REVISION_DIGITS]


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def parse_manifest(text: bytes) -> Manifest:
    """Read a manifest and believe nothing in it before its revision has been checked.

    Args:
        text: Content of manifest.json.

    Returns:
        The validated manifest.

    Raises:
        ManifestSyntaxError: If it is not a JSON object.
        FormatVersionError: If it is of a format or version this reader does not know.
        ManifestEditedError: If its revision is not the digest of its content.
        ManifestFieldError: If a field is missing, unknown or out of range.
    """
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
        canonical = canonical_json(value)  # refuses 1e999 and lone surrogates, which json.loads lets through
    except (ValueError, RecursionError) as error:
        raise ManifestSyntaxError(MANIFEST, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ManifestSyntaxError(MANIFEST, f"must be a JSON object, is a {type(value).__name__}")
    if value.get("format") != FORMAT:
        raise FormatVersionError(f"{MANIFEST}: format is {value.get('format')!r}, this reader knows {FORMAT!r} only")
    version = value.get("format_version")
    if version not in READABLE_VERSIONS or isinstance(version, bool | float):
        raise FormatVersionError(
            f"{MANIFEST}: format_version is {version!r}, this reader knows "
            f"{' and '.join(map(str, READABLE_VERSIONS))}. Upgrade nattribute to read a newer index, or rebuild it."
        )
    expected = revision_of(value)
    if value.get("revision") != expected:
        raise ManifestEditedError(
            MANIFEST,
            f"revision is {value.get('revision')!r}, the digest of the content is {expected!r}: the manifest was "
            "changed after publication. Restore it, or rebuild the index.",
        )
    try:
        return Manifest.model_validate_json(canonical, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ManifestFieldError(MANIFEST, f"{where}: {first['msg']}") from error


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of an index directory.

    Args:
        path: The index directory.

    Returns:
        The validated manifest.

    Raises:
        MissingFileError: If there is no manifest.json.
    """
    if not (path / MANIFEST).is_file():
        raise MissingFileError(MANIFEST, "is not there as a file; every index directory has one")
    return parse_manifest((path / MANIFEST).read_bytes())
