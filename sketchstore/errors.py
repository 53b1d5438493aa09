"""Every way an index directory can be missing, wrong or misused, as one class each.

::

    IndexDirectoryError
    ├ IndexNotFoundError(FileNotFoundError)
    │ └ UnpublishedIndexError             the directory is a build that has not finished
    ├ IndexExistsError(FileExistsError)
    │ ├ UnfinishedBuildError              name.partial/ is there, and neither resume nor overwrite was asked
    │ └ AlreadyPublishedError             this very build is already published
    ├ BuildInProgressError                another process holds the build's lock
    ├ ResumeMismatchError(ValueError)     the plan of the unfinished build is another one
    ├ IncompleteBuildError                publish before everything was written
    ├ DamagedBuildError                   a file of the unfinished build is not what was written
    ├ StorageError(OSError)               the disk is full or fails (`storing.py`)
    ├ FormatVersionError                  written by a version this reader does not know
    ├ CorruptIndexError                   what is on the disk is not what was published: has .file and .kind
    │ ├ ManifestError
    │ │ ├ ManifestSyntaxError             not JSON
    │ │ ├ ManifestFieldError              a field missing, unknown or of the wrong type
    │ │ └ ManifestEditedError             the revision is not the digest of the manifest
    │ ├ MissingFileError  ExtraFileError  TruncatedFileError  OversizedFileError  SymbolicLinkError
    │ ├ DigestMismatchError
    │ │ └ SwappedFilesError               the bytes are those of another file of this index
    │ ├ FileHeaderError                   not a safetensors / npy / Parquet file
    │ ├ ShapeMismatchError  DtypeMismatchError  RowCountError
    │ ├ NotFiniteValueError  NormMismatchError  LabelMismatchError  ExampleTableError  QueryTableError
    │ └ DerivedError
    │   ├ DerivedManifestError  CorruptDerivedError  StaleDerivedError
    ├ MissingDerivedError(LookupError)    no such derived entry: build it
    ├ FaissFactoryError(ValueError)       a factory string FAISS refuses, or is silently wrong with
    ├ EngineUnavailableError              faiss, or its GPU build and a device, is not installed
    ├ IncompatibleSketchError(ValueError) vectors of another sketching matrix
    ├ SketchBlockError(ValueError)        a block, column or query that does not fit the plan
    │ ├ NotFiniteSketchError
    │ └ Float16RangeError                 overflow, or more than 1 % subnormal entries
    ├ UpkeepError(ValueError)             a published index cannot be changed as asked
    │ ├ MergeMismatchError                indexes of another model, measurement, views or storage type
    │ ├ IdCollisionError                  two rows would have one id
    │ ├ EveryRowRemovedError              no row would be left
    │ ├ NothingToPurgeError               no row is named, and none is withdrawn
    │ └ PurgeError                        a file written anew does not hold exactly the rows that stay
    ├ ExampleValueError(ValueError)       an id, label, metadata value or preview that cannot be stored
    └ UnknownNameError(LookupError)
      ├ UnknownViewError  UnknownColumnError  UnknownIdError  UnknownRowError  UnknownLabelError
      └ UnknownMetadataError  MissingQuerySketchError

Catch IndexDirectoryError for all of them, CorruptIndexError for damage.
"""

from collections.abc import Iterable
from difflib import get_close_matches


def listed(names: Iterable[object], limit: int = 20) -> str:
    """Names as prose, cut at ``limit``.

    Args:
        names: What to list.
        limit: How many to print.

    Returns:
        The names joined by commas; "none" for an empty list.
    """
    words = [str(name) for name in names]
    if not words:
        return "none"
    rest = f" … ({len(words)} in all)" if len(words) > limit else ""
    return ", ".join(words[:limit]) + rest


class IndexDirectoryError(Exception):
    """Anything wrong with an index directory or its use."""


class IndexNotFoundError(IndexDirectoryError, FileNotFoundError):
    """There is no index directory at this path."""


class UnpublishedIndexError(IndexNotFoundError):
    """The directory is a build that has not been published."""


class IndexExistsError(IndexDirectoryError, FileExistsError):
    """Something is already there, and overwriting was not asked for."""


class UnfinishedBuildError(IndexExistsError):
    """An unfinished build is there; it must be resumed or overwritten on purpose."""


class AlreadyPublishedError(IndexExistsError):
    """The index there was published from this very plan: nothing is left to build."""


class BuildInProgressError(IndexDirectoryError):
    """Another process is building this index."""


class ResumeMismatchError(IndexDirectoryError, ValueError):
    """The unfinished build was planned with another model, data, sketch, measurement or machine setting."""


class IncompleteBuildError(IndexDirectoryError):
    """Publication was asked for before every block, column and table was written."""


class DamagedBuildError(IndexDirectoryError):
    """A file that an unfinished build cannot be resumed without is not what was written."""


class FormatVersionError(IndexDirectoryError):
    """The directory's format version is not one this reader knows."""


class CorruptIndexError(IndexDirectoryError):
    """What is on the disk is not what was published.

    Args:
        file: Path inside the index directory, with forward slashes.
        message: What is wrong with it.
    """

    kind = "corrupt"

    def __init__(self, file: str, message: str) -> None:
        super().__init__(f"{file}: {message}")
        self.file = file
        self.message = message


class ManifestError(CorruptIndexError):
    """The manifest cannot be believed."""

    kind = "manifest"


class ManifestSyntaxError(ManifestError):
    """The manifest is not JSON."""

    kind = "manifest_syntax"


class ManifestFieldError(ManifestError):
    """A manifest field is missing, unknown, or has a value the format does not allow."""

    kind = "manifest_field"


class ManifestEditedError(ManifestError):
    """The manifest's revision is not the digest of its content."""

    kind = "manifest_edited"


class MissingFileError(CorruptIndexError):
    """A file named by the manifest is not there."""

    kind = "missing"


class ExtraFileError(CorruptIndexError):
    """A file that the manifest does not name is there, or a folder for none of its files."""

    kind = "extra"


class SymbolicLinkError(CorruptIndexError):
    """A symbolic link lies in the directory: what it leads to is not under the digests' guard."""

    kind = "symlink"


class TruncatedFileError(CorruptIndexError):
    """A file is shorter than the manifest says."""

    kind = "truncated"


class OversizedFileError(CorruptIndexError):
    """A file is longer than the manifest says."""

    kind = "oversized"


class DigestMismatchError(CorruptIndexError):
    """A file has the right length and other bytes than were published."""

    kind = "digest"


class SwappedFilesError(DigestMismatchError):
    """A file holds the bytes that the manifest gives to another file."""

    kind = "swapped"


class FileHeaderError(CorruptIndexError):
    """A file's header is not that of its format."""

    kind = "header"


class ShapeMismatchError(CorruptIndexError):
    """An array has another shape than the manifest says."""

    kind = "shape"


class DtypeMismatchError(CorruptIndexError):
    """An array has another element type than the manifest says."""

    kind = "dtype"


class RowCountError(CorruptIndexError):
    """A table has another number of rows than the manifest says, or its rows are not 0, 1, 2, …."""

    kind = "row_count"


class NotFiniteValueError(CorruptIndexError):
    """NaN or an infinity is stored."""

    kind = "not_finite"


class NormMismatchError(CorruptIndexError):
    """Stored squared norms, or their means in the manifest, are not those of the stored sketches."""

    kind = "norms"


class LabelMismatchError(CorruptIndexError):
    """Labels, their counts in the manifest and the examples table disagree."""

    kind = "labels"


class ExampleTableError(CorruptIndexError):
    """An examples table lacks a column, has one of another type, or repeats an id."""

    kind = "examples"


class QueryTableError(CorruptIndexError):
    """Query sketches name query rows or targets that do not exist, or name one twice."""

    kind = "queries"


class DerivedError(CorruptIndexError):
    """A derived entry cannot be used; deleting ``derived/`` and rebuilding it is always safe."""

    kind = "derived"


class DerivedManifestError(DerivedError):
    """derived/manifest.json is not JSON, or has fields the format does not know."""

    kind = "derived_manifest"


class CorruptDerivedError(DerivedError):
    """A derived file is missing, or has another length or digest than derived/manifest.json says."""

    kind = "derived_corrupt"


class StaleDerivedError(DerivedError):
    """A derived entry was built from other bytes than this index holds."""

    kind = "derived_stale"


class MissingDerivedError(IndexDirectoryError, LookupError):
    """The index has no such derived entry."""


class FaissFactoryError(IndexDirectoryError, ValueError):
    """FAISS refuses the factory string, or is known to give wrong results with it."""


class EngineUnavailableError(IndexDirectoryError):
    """A search engine is not installed, or its device is not there."""


class IncompatibleSketchError(IndexDirectoryError, ValueError):
    """Two sketches come from different sketching matrices, so their inner product means nothing."""


class SketchBlockError(IndexDirectoryError, ValueError):
    """An array given to the writer does not fit the build plan."""


class NotFiniteSketchError(SketchBlockError):
    """A sketch holds NaN or an infinity."""


class Float16RangeError(SketchBlockError):
    """The sketches do not fit float16 at the chosen scale."""


class UpkeepError(IndexDirectoryError, ValueError):
    """A published index cannot be changed as asked."""


class MergeMismatchError(UpkeepError):
    """Indexes were built at other weights, of another measurement, with other views or another storage type."""


class IdCollisionError(UpkeepError):
    """Two rows of one index would have the same external id."""


class EveryRowRemovedError(UpkeepError):
    """A removal would leave an index without a row."""


class NothingToPurgeError(UpkeepError):
    """A removal names no row, and no row is withdrawn that could be purged."""


class PurgeError(UpkeepError):
    """What a purge wrote, read back, is not the rows that stay and nothing else."""


class ExampleValueError(IndexDirectoryError, ValueError):
    """An example's id, label, metadata or preview cannot be stored."""


class UnknownNameError(IndexDirectoryError, LookupError):
    """A name, id or number that the index does not have."""


class UnknownViewError(UnknownNameError):
    """The index has no view of this name."""


class UnknownColumnError(UnknownNameError):
    """The index has no column of this name."""


class UnknownRowError(UnknownNameError):
    """A row number outside the table."""


class UnknownLabelError(UnknownNameError):
    """No row of the index has this label."""


class UnknownMetadataError(UnknownNameError):
    """The examples have no metadata of this name, or of another type than the value asked for."""


class MissingQuerySketchError(UnknownNameError):
    """No sketch is stored for this query row, view and target."""


class UnknownIdError(UnknownNameError):
    """No example has this id.

    Args:
        id: The id asked for.
        table: What was searched, such as "training set".
        near: Ids that it may have meant.
        numbered: First and last id, where the ids are numbered throughout.
        example: An id that exists, where there is one.
        withdrawn: Whether a row had it that was removed and is still in the files. Of purged rows nothing is known.
    """

    def __init__(
        self,
        id: str,
        table: str,
        near: list[str],
        *,
        numbered: tuple[str, str] | None = None,
        example: str = "",
        withdrawn: bool = False,
    ) -> None:
        hint = f"; did you mean {listed(near)}?" if near else ""
        if numbered is not None:
            hint = f"; its ids are {numbered[0]} to {numbered[1]}"
        elif not near and example:
            hint = f"; its ids look like {example!r}"
        if withdrawn:
            said = f"the example with the id {id!r} was withdrawn from the {table} (indexer remove)"
        else:
            purged = "" if numbered else ", or the one that had it was withdrawn and purged"
            said = f"no example of the {table} has the id {id!r}{purged}{hint}"
        super().__init__(said)
        self.id = id
        self.withdrawn = withdrawn
        self.near = near
        self.allowed: object = (
            {"from": numbered[0], "to": numbered[1]}
            if numbered
            else near or f"an id of the {table}, such as {example!r}"
        )


def near_names(name: str, names: Iterable[str], limit: int = 3) -> list[str]:
    """Names that a misspelt one may have meant.

    Args:
        name: What was asked for.
        names: What exists.
        limit: How many to return at most.

    Returns:
        The most similar names, best first.
    """
    return get_close_matches(name, list(names), n=limit, cutoff=0.6)
