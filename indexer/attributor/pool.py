"""Which rows a question is about: those comparable with the query, D among them, and the candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indexer.attributor.errors import (
    EmptyPoolError,
    LabelMismatchError,
    UnknownIdError,
    UnknownLabelError,
    UnknownMetadataError,
    UnknownViewError,
)
from indexer.attributor.questions import CandidateFilter, QuerySketch
from sketchstore.errors import UnknownIdError as StoreUnknownIdError
from sketchstore.errors import UnknownMetadataError as StoreUnknownMetadataError
from sketchstore.examples import MetadataCondition
from sketchstore.reader import Index
from sketchstore.view import View


@dataclass(frozen=True)
class Pool:
    """Rows of a question; all ascending, int64.

    Attributes:
        view: The view.
        label: The partition of comparable rows: a label, or None for all rows.
        comparable: T, every row comparable with the query.
        excluded: Positions in T that leave the candidates and D.
        candidates: Rows that may be selected.
        conditioning: D. Every comparable row less the excluded, or the candidates.
        whole: Whether D is T less the excluded.
    """

    view: View
    label: int | None
    comparable: Tensor
    excluded: Tensor
    candidates: Tensor
    conditioning: Tensor
    whole: bool

    def positions(self, rows: Tensor) -> Tensor:
        """Find rows among the comparable ones.

        Args:
            rows: Comparable rows.

        Returns:
            Their positions in T.
        """
        return positions_in(self.comparable, rows)


def positions_in(ascending: Tensor, rows: Tensor) -> Tensor:
    """Find rows in an ascending list that contains them.

    Args:
        ascending: Rows, int64, ascending.
        rows: Some of them, in any order.

    Returns:
        Their positions.
    """
    return torch.searchsorted(ascending, rows)


def partition_label(view: View, query: QuerySketch) -> int | None:
    """Name the partition of rows comparable with a query.

    Args:
        view: The query's view.
        query: The query.

    Returns:
        Its label on an own-label view; None where all rows are comparable.

    Raises:
        UnknownLabelError: If no training row has the query's label.
    """
    if view.comparable == "all":
        return None
    labels = [label for label in view.partitions if label is not None]
    if query.label not in labels:
        raise UnknownLabelError(
            f"no training row has label {query.label}, and this index compares rows of one label only.",
            pointer="/target/label",
            allowed=labels,
        )
    return query.label


def query_view(index: Index, query: QuerySketch) -> View:
    """Find the view a query is comparable with.

    Args:
        index: The index.
        query: The query.

    Returns:
        The view.

    Raises:
        UnknownViewError: If the index has no such view.
    """
    if query.view not in index.views:
        raise UnknownViewError(
            f"index {index.name!r} has no view {query.view!r}.", pointer="/target/label", allowed=list(index.views)
        )
    return index.view(query.view)


def resolve_pool(index: Index, query: QuerySketch, wanted: CandidateFilter, condition: str) -> Pool:
    """Settle which rows may be selected, and what D is.

    Args:
        index: The index.
        query: The query.
        wanted: The filter.
        condition: ``comparable`` or ``pool``.

    Returns:
        The pool.

    Raises:
        EmptyPoolError: If nothing may be selected.
    """
    view = query_view(index, query)
    label = partition_label(view, query)
    comparable = view.partition_rows(label)
    left_out = torch.tensor(query.exclude_rows, dtype=torch.int64)
    if wanted.exclude_ids:
        left_out = torch.cat([left_out, rows_to_exclude(index, wanted.exclude_ids, "/filter/exclude_ids")])
    kept = comparable
    excluded = torch.empty(0, dtype=torch.int64)
    if left_out.numel():
        out = torch.isin(comparable, left_out)
        excluded, kept = out.nonzero().squeeze(1), comparable[~out]
    candidates = _filtered(index, wanted, kept, label)
    if candidates.numel() == 0:
        raise EmptyPoolError(
            f"no row may be selected: {comparable.numel()} rows are comparable with the query, none of them passes the "
            "filter. Widen it.",
            pointer="/filter",
        )
    whole = condition == "comparable" or candidates.numel() == kept.numel()
    return Pool(view, label, comparable, excluded, candidates, kept if whole else candidates, whole)


def _filtered(index: Index, wanted: CandidateFilter, kept: Tensor, label: int | None) -> Tensor:
    candidates = kept
    if wanted.labels is not None:
        check_labels(index, wanted.labels, label)
        if label is None:
            chosen = torch.tensor(list(wanted.labels), dtype=torch.int64)
            candidates = candidates[torch.isin(index.labels[candidates], chosen)]
    if wanted.ids is not None:
        rows = rows_of_ids(index, wanted.ids, "/filter/ids")
        check_comparable(index, rows, label, "/filter/ids")
        candidates = candidates[torch.isin(candidates, rows)]
    if wanted.where:
        candidates = candidates[torch.isin(candidates, rows_where(index, wanted.where))]
    return candidates


def check_labels(index: Index, labels: Sequence[int], label: int | None) -> None:
    """Refuse labels that no row has, and on an own-label view all but the query's.

    Args:
        index: The index.
        labels: Labels asked for.
        label: The query's label on an own-label view, else None.

    Raises:
        UnknownLabelError: If no training row has one of them.
        LabelMismatchError: If rows of one of them cannot be compared with the query.
    """
    known = sorted(int(name) for name in index.manifest.labels.counts)
    for place, wanted in enumerate(labels):
        pointer = f"/filter/labels/{place}"
        if wanted not in known or isinstance(wanted, bool):
            raise UnknownLabelError(f"no training row has label {wanted}.", pointer=pointer, allowed=known)
        if label is not None and wanted != label:
            raise LabelMismatchError(
                f"label {wanted} was asked for, the query is about label {label}: this index holds own-label logits, "
                "which compare rows of one label only. Ask for that label, or build the index with "
                "--measurement class_logit or margin.",
                pointer=pointer,
                allowed=[label],
            )


def check_comparable(index: Index, rows: Tensor, label: int | None, pointer: str) -> None:
    """Refuse rows that cannot be compared with the query.

    Args:
        index: The index.
        rows: Rows asked for.
        label: The query's label on an own-label view, else None.
        pointer: Where they stand in the request.

    Raises:
        LabelMismatchError: If one has another label than the query on an own-label view.
    """
    if label is None:
        return
    for place, row in enumerate(rows.tolist()):
        found = int(index.labels[row])
        if found != label:
            raise LabelMismatchError(
                f"example {index.examples.id(row)!r} has label {found}, the query is about label {label}: this index "
                "holds own-label logits, which compare rows of one label only.",
                pointer=f"{pointer}/{place}",
                allowed={"label": label},
            )


def rows_of_ids(index: Index, ids: Sequence[str], pointer: str) -> Tensor:
    """Look up training rows by their external ids.

    Args:
        index: The index.
        ids: The ids.
        pointer: Where they stand in the request.

    Returns:
        Rows, int64, in the order of the ids.

    Raises:
        UnknownIdError: If no training example has one of them.
    """
    return _rows_of_ids(index, ids, pointer, skip_withdrawn=False)


def _rows_of_ids(index: Index, ids: Sequence[str], pointer: str, *, skip_withdrawn: bool) -> Tensor:
    rows: list[int] = []
    for place, id in enumerate(ids):
        try:
            rows.append(index.examples.row(id))
        except StoreUnknownIdError as error:
            if error.withdrawn and skip_withdrawn:
                continue
            raise UnknownIdError(str(error), pointer=f"{pointer}/{place}", allowed=error.allowed) from error
    return torch.tensor(rows, dtype=torch.int64)


def rows_to_exclude(index: Index, ids: Sequence[str], pointer: str) -> Tensor:
    """Look up training rows that are to be left out; those that were withdrawn are out already.

    Args:
        index: The index.
        ids: Their external ids; a list that was made before a row was withdrawn stays a good one.
        pointer: Where they stand in the request.

    Returns:
        Rows, int64, in the order of the ids, without those that were withdrawn.

    Raises:
        UnknownIdError: If an id is neither a row's nor a withdrawn one's.
    """
    return _rows_of_ids(index, ids, pointer, skip_withdrawn=True)


def rows_where(index: Index, wanted: Mapping[str, MetadataCondition]) -> Tensor:
    """Look up training rows by their metadata.

    Args:
        index: The index.
        wanted: Conditions by name (`ExampleTable.where`).

    Returns:
        Rows, int64, ascending.

    Raises:
        UnknownMetadataError: If the examples have no such metadata, or not of this type.
    """
    for name, value in wanted.items():
        try:
            index.examples.where({name: value})
        except StoreUnknownMetadataError as error:
            escaped = name.replace("~", "~0").replace("/", "~1")
            raise UnknownMetadataError(
                str(error), pointer=f"/filter/where/{escaped}", allowed=index.examples.metadata_names
            ) from error
    return index.examples.where(wanted)
