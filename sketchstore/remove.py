"""Withdrawing rows from an index: out of every answer with the next revision, and with a purge out of its files."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from sketchstore.arrays import Array, map_npy, tensor_file_bytes
from sketchstore.earlier_rows import forget_rows, noise_of_other_rows, rows_changed
from sketchstore.errors import EveryRowRemovedError, NothingToPurgeError, UnknownIdError
from sketchstore.examples import ExampleTable
from sketchstore.kept import Kept, places_in, ranges_of
from sketchstore.manifest import QUERY_REPRESENTATIONS, column_file, query_file, shard_file
from sketchstore.purge_proof import PurgeProof
from sketchstore.reader import Index
from sketchstore.revising import Draft, drafted, fields_of, sweep
from sketchstore.row_facts import state_rows
from sketchstore.stored_arrays import write_column, write_shard
from sketchstore.table_copy import copy_tables

EXAMPLES, QUERIES = "examples.parquet", "queries/examples.parquet"


@dataclass(frozen=True)
class RemoveReport:
    """What a removal did.

    Attributes:
        revision: The new revision.
        removed_rows: Rows withdrawn now.
        removed_queries: Rows of the query set that had the id of a removed row and went too.
        purged_rows: Rows whose bytes left the files now, those withdrawn earlier included.
        num_rows: Rows that are left.
        rewritten: Files that were written anew.
        notes: What else is worth knowing.
    """

    revision: str
    removed_rows: int
    removed_queries: int
    purged_rows: int
    num_rows: int
    rewritten: list[str]
    notes: list[str]


def remove_rows(index: Index, ids: Collection[str], *, purge: bool = False) -> RemoveReport:
    """Publish the next revision of an index, without some rows.

    Without ``purge`` the rows stay in the files, listed as removed: nothing is rewritten but the manifest and, where
    they have one of the ids, the queries. With it, every file that holds bytes of a removed row is written anew
    without them, for rows withdrawn earlier too. What is written anew is read back before it is published
    (`purge_proof.py`). Either way the rows that are left are numbered 0, 1, 2, … and derived entries are left behind.

    A query that has the id of a removed row is that row, and goes. One that shows the same under an id of its own is
    another example, and stays.

    Args:
        index: The open index.
        ids: External ids of the rows; each must be there, or have been until it was withdrawn: a list of all
            withdrawals can be handed in again. May be empty with ``purge``.
        purge: Whether the bytes leave the files.

    Returns:
        What was done.

    Raises:
        UnknownIdError: If an id is neither a row's nor a withdrawn one's; nothing is removed then.
        EveryRowRemovedError: If no row would be left.
        NothingToPurgeError: If no id is given and no row is withdrawn.
    """
    sweep(index.path)
    manifest = index.manifest
    rows, earlier = _rows_of(index, ids)
    if earlier and not rows.numel() and not purge:
        return RemoveReport(index.revision, 0, 0, 0, index.num_rows, [], [_said_of(earlier)])
    if not rows.numel() and not (purge and manifest.removed):
        raise NothingToPurgeError(
            f"index {index.name!r}: no id is given"
            + (" and no row is withdrawn, so nothing can be purged" if purge else "")
        )
    if rows.numel() == index.num_rows:
        raise EveryRowRemovedError(
            f"all {index.num_rows} rows of index {index.name!r} would go, and an index has at least one; "
            "delete the directory instead"
        )
    places = manifest.kept.places(rows.numpy())
    gone = ranges_of([*places_in(manifest.removed).tolist(), *places.tolist()])
    kept = Kept(manifest.num_places - sum(stop - first for first, stop in gone), gone)
    with drafted(index.path, follows=index) as draft:
        fields = fields_of(manifest)
        labels = _column(index, "labels")
        norms = {view: _column(index, f"squared_norms.{view}") for view in manifest.views}
        state_rows(fields, gone, labels, norms)
        if rows.numel():
            rows_changed(fields)
        stale = noise_of_other_rows(manifest.default_relative_noise, fields["noise_tuning"], kept.num_rows)
        notes = [*([_said_of(earlier)] if earlier else []), *([] if stale is None else [stale])]
        if purge and (dropped := forget_rows(fields)):
            notes.append(f"computed with rows that are purged, and dropped: {', '.join(dropped)}")
        stays, proof, wanted = set(manifest.files), PurgeProof(index), set(ids)
        if purge:  # withdrawn from an index that had no such query, and merged with one that has
            wanted |= set(_table(index).column("id").take(pa.array(places_in(gone))).to_pylist())
        queries = _without_queries(index, draft, fields, wanted, proof)
        if queries:
            stays = {file for file in stays if not file.startswith("queries/")}
        if purge:
            stays -= _purge(index, draft, fields, kept, places_in(gone), proof)
        for file in stays:
            draft.keep(index, file)
        if purge:
            proof.nothing_else(draft.content, draft.taken_over)
        draft.log(index, {"event": "remove", "rows": int(rows.numel()), "purge": purge})
        revision = draft.publish(fields)
        return RemoveReport(
            revision=revision,
            removed_rows=int(rows.numel()),
            removed_queries=queries,
            purged_rows=kept.num_places - kept.num_rows if purge else 0,
            num_rows=kept.num_rows,
            rewritten=sorted(set(draft.files) - stays),
            notes=notes,
        )


def _rows_of(index: Index, ids: Collection[str]) -> tuple[Tensor, list[str]]:
    # Rows of the ids, and those ids that were withdrawn already.
    rows, earlier = list[int](), list[str]()
    for id in sorted(set(ids)):
        try:
            rows.append(index.examples.row(id))
        except UnknownIdError as error:
            if not error.withdrawn:
                error.args = (f"{error}. Nothing was removed.",)
                raise
            earlier.append(id)
    return torch.tensor(rows, dtype=torch.int64), earlier


def _said_of(earlier: Sequence[str]) -> str:
    shown = ", ".join(repr(id) for id in earlier[:3]) + (f" and {len(earlier) - 3} more" if len(earlier) > 3 else "")
    return f"withdrawn before: {shown}"


def _column(index: Index, name: str) -> Array:
    # All places of a column, checked as the index was opened to check.
    column, file = index.manifest.columns[name], column_file(name)
    return map_npy(index.files.path(file), file, dtype=column.dtype, shape=column.shape)


def _table(index: Index) -> ExampleTable:
    return ExampleTable(index.files, EXAMPLES, index.manifest.num_places, "train")  # lines of removed rows, too


def _purge(
    index: Index, draft: Draft, fields: dict[str, Any], kept: Kept, gone: npt.NDArray[np.int64], proof: PurgeProof
) -> set[str]:
    # Writes what holds bytes of removed rows, proves that it no longer does, and returns the files that do not stay.
    manifest = index.manifest
    replaced = {EXAMPLES}
    for view in manifest.views:
        replaced |= _purge_shards(index, draft, fields, view, kept, gone, proof)
    for name, column in fields["columns"].items():
        file = column_file(name)
        with draft.writing(file) as path:
            write_column(path, [kept.take(_column(index, name))])
            proof.column(path, file, _column(index, name), gone)
        column["shape"] = [kept.num_rows, *column["shape"][1:]]
        replaced.add(file)
    with draft.writing(EXAMPLES) as path:
        copy_tables(path, [(_table(index), kept)])
        proof.table(path, EXAMPLES, _table(index), gone)
    fields["removed"] = []
    return replaced


def _purge_shards(
    index: Index,
    draft: Draft,
    fields: dict[str, Any],
    name: str,
    kept: Kept,
    gone: npt.NDArray[np.int64],
    proof: PurgeProof,
) -> set[str]:
    # Shards without a removed row are taken over under their new number; the others are written without them.
    view, shards, replaced, start = index.view(name), list[dict[str, Any]](), set[str](), 0
    for number, shard in enumerate(index.manifest.views[name].shards):
        mask = kept.mask(start, start + shard.rows)
        inside = gone[(gone >= start) & (gone < start + shard.rows)] - start
        start += shard.rows
        replaced.add(shard.file)
        left = int(mask.sum())
        if not left:
            continue
        file = shard_file(name, len(shards))
        if left == shard.rows:
            draft.keep(index, shard.file, file)
        else:
            part = Kept(left, ranges_of(np.flatnonzero(~mask).tolist()))
            with draft.writing(file) as path:
                write_shard(path, [part.take(view.shard(number))])
                proof.shard(path, file, view.shard(number), inside)
        shards.append({"file": file, "rows": left})
    fields["views"][name]["shards"] = shards
    return replaced


def _without_queries(index: Index, draft: Draft, fields: dict[str, Any], ids: set[str], proof: PurgeProof) -> int:
    """Write the queries anew without those that have one of the ids; nothing where none has.

    Returns:
        How many queries went.
    """
    if index.queries is None:
        return 0
    found: list[str] = index.queries.examples.column("id").to_pylist()
    concerned = [row for row, id in enumerate(found) if id in ids]
    if not concerned:
        return 0
    kept = Kept(len(found) - len(concerned), ranges_of(concerned))
    counts = {}
    for view in index.queries.views:
        sketches, rows, targets = index.queries.arrays(view)
        chosen = ~np.isin(rows, concerned)
        numbers = np.cumsum(kept.mask(0, len(found))) - 1
        left = {
            "sketches": sketches[chosen],
            "query_rows": numbers[rows[chosen]].astype(np.int64),
            "target_labels": targets[chosen],
        }
        with draft.writing(query_file(view)) as path:
            path.write_bytes(tensor_file_bytes(left))
            shown = {"sketches": sketches, "query_rows": numbers[rows].astype(np.int64), "target_labels": targets}
            proof.tensors(path, query_file(view), shown, np.flatnonzero(~chosen))
        counts[view] = int(chosen.sum())
    if index.queries.has_representations:
        with draft.writing(QUERY_REPRESENTATIONS) as path:
            write_column(path, [np.delete(index.queries.representations(), concerned, axis=0)])
            proof.column(path, QUERY_REPRESENTATIONS, index.queries.representations(), concerned)
    with draft.writing(QUERIES) as path:
        table = ExampleTable(index.files, QUERIES, len(found), "query")
        copy_tables(path, [(table, kept)])
        proof.table(path, QUERIES, table, concerned)
    fields["queries"] = {"count": kept.num_rows, "sketches": counts}
    return len(concerned)
