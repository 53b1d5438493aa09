"""The stored examples of an index as the client sees them: pages, single ones, previews."""

from collections.abc import Sequence
from typing import Any

from service.errors import ContentNotFoundError, UnknownExampleError, UnknownExampleIdError
from service.preview_images import UnshowableImageError, clean_png
from service.schemas.cards import Example, ExamplePage
from service.schemas.questions import Split
from sketchstore.errors import UnknownIdError
from sketchstore.examples import ExampleTable
from sketchstore.manifest import NO_LABEL
from sketchstore.reader import Index


def page(
    index: Index, split: Split, offset: int, limit: int, ids: Sequence[str] = (), *, previews: bool = True
) -> ExamplePage:
    """Return consecutive examples of a split, or of those with some ids.

    Args:
        index: The index.
        split: The split.
        offset: The first row.
        limit: How many.
        ids: Only the examples with these ids, in their order; none: all.
        previews: Whether stored previews are shown.

    Returns:
        The examples that exist, and how many the split, or the ids, have.

    Raises:
        UnknownExampleIdError: If one of the ids is no example's.
    """
    table = _table(index, split)
    if table is None:
        if ids:
            raise UnknownExampleIdError(f"split {split} has no examples, and no id {ids[0]!r}", parameter="id")
        return ExamplePage(examples=[], total=0)
    rows = [_row_of(table, id) for id in ids] if ids else range(table.count)
    return ExamplePage(
        examples=[_example(table, row, previews) for row in rows[offset : offset + limit]], total=len(rows)
    )


def single(index: Index, split: Split, row: int, *, previews: bool = True) -> Example:
    """Return one example.

    Args:
        index: The index.
        split: The split.
        row: The row.
        previews: Whether stored previews are shown.

    Returns:
        The example.

    Raises:
        UnknownExampleError: If there is no such row.
    """
    table = _table(index, split)
    if table is None or row >= table.count:
        count = 0 if table is None else table.count
        raise UnknownExampleError(
            f"split {split} has {count} rows, and no row {row}",
            parameter="row",
            allowed={"ge": 0, "lt": count},
        )
    return _example(table, row, previews)


def content(index: Index, split: Split, row: int, *, previews: bool = True) -> tuple[str, bytes]:
    """Return the stored preview of an example.

    Args:
        index: The index.
        split: The split.
        row: The row.
        previews: Whether stored previews are shown.

    Returns:
        Its media type and bytes; a picture's are encoded anew.

    Raises:
        ContentNotFoundError: If none was stored, or it is a picture that cannot be shown.
    """
    single(index, split, row)
    table = _table(index, split)
    preview = None if table is None or not previews else table.preview(row)
    if preview is None:
        raise ContentNotFoundError(f"row {row} of split {split} has no stored content", parameter="row")
    media_type, found = preview
    if media_type != "image/png":
        return preview
    try:
        return media_type, clean_png(found)
    except UnshowableImageError as error:
        raise ContentNotFoundError(
            f"row {row} of split {split} has no picture to show: {error}", parameter="row"
        ) from error


def _table(index: Index, split: Split) -> ExampleTable | None:
    if split == "train":
        return index.examples
    return None if index.queries is None else index.queries.examples


def _row_of(table: ExampleTable, id: str) -> int:
    try:
        return table.row(id)
    except UnknownIdError as error:
        raise UnknownExampleIdError(str(error), parameter="id", allowed=error.allowed or None) from error


def _example(table: ExampleTable, row: int, previews: bool) -> Example:
    label = table.label(row)
    preview = table.preview(row) if previews else None
    metadata: dict[str, Any] = dict(table.metadata(row))
    return Example(
        row=row,
        id=table.id(row),
        label=None if label == NO_LABEL else label,
        predicted_label=table.predicted_label(row),
        metadata=metadata,
        content_type=None if preview is None else preview[0],
    )
