"""Groups of training examples: named by their ids, or one for each value of a metadata column or for each label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indexer.attributor.errors import (
    DuplicateIdError,
    EmptyPoolError,
    TooManyGroupsError,
    UnknownMetadataError,
)
from indexer.attributor.pool import rows_of_ids
from sketchstore.errors import UnknownMetadataError as StoreUnknownMetadataError
from sketchstore.reader import Index

#: Stands for the examples' own labels among the names of metadata.
LABEL = "label"


@dataclass(frozen=True)
class Group:
    """Some training examples under one name.

    Attributes:
        name: The name: a value of the column as text, or what the caller calls it.
        rows: Their rows, int64, ascending.
    """

    name: str
    rows: Tensor


@dataclass(frozen=True)
class Groups:
    """The groups of a question.

    Attributes:
        groups: At least one.
        num_without: Rows without a value of the column, which are in no group; 0 for groups of ids.
    """

    groups: tuple[Group, ...]
    num_without: int = 0


def groups_by(index: Index, column: str, most: int) -> Groups:
    """Make a group of every value of a metadata column, in ascending order of the values.

    Args:
        index: The index.
        column: Name of the metadata, or ``label`` for the examples' labels where no metadata is called so.
        most: How many groups there may be.

    Returns:
        The groups, and how many rows have no value.

    Raises:
        UnknownMetadataError: If the examples have no such metadata.
        TooManyGroupsError: If it has more values than there may be groups.
        EmptyPoolError: If no row has a value.
    """
    pointer = "/groups/by"
    values: Sequence[object]
    if column == LABEL and LABEL not in index.examples.metadata_names:
        labels, places = torch.unique(index.labels, return_inverse=True)
        values = labels.tolist()
        if values and values[0] == -1:
            values, places = values[1:], places - 1
    else:
        try:
            values, places = index.examples.values(column)
        except StoreUnknownMetadataError as error:
            allowed = [*index.examples.metadata_names, LABEL]
            raise UnknownMetadataError(
                f"there is no metadata {column!r} to group by; there are {', '.join(allowed)}.",
                pointer=pointer,
                allowed=allowed,
            ) from error
    if not values:
        raise EmptyPoolError(f"no training example has a value of {column!r}.", pointer=pointer)
    if len(values) > most:
        raise TooManyGroupsError(
            f"{column!r} has {len(values)} values, and at most {most} groups are told apart in one question. Name the "
            "groups by ids, or group by a column of fewer values.",
            pointer=pointer,
            allowed={"groups": {"le": most}},
        )
    order = torch.argsort(places, stable=True)
    counts = torch.bincount(places + 1, minlength=len(values) + 1).tolist()
    without, *parts = torch.split(order, counts)
    groups = tuple(Group(str(value), rows) for value, rows in zip(values, parts, strict=True))
    return Groups(groups, int(without.numel()))


def groups_of_ids(index: Index, named: Mapping[str, Sequence[str]]) -> Groups:
    """Make the groups that a caller names.

    Args:
        index: The index.
        named: Ids of training examples by the group's name; groups may overlap.

    Returns:
        The groups, in the order given.

    Raises:
        EmptyPoolError: If there is no group, or one has no example.
        DuplicateIdError: If a group names an example twice.
    """
    if not named:
        raise EmptyPoolError("groups is empty; name at least one group.", pointer="/groups")
    groups = []
    for name, ids in named.items():
        pointer = f"/groups/{name.replace('~', '~0').replace('/', '~1')}"
        if not ids:
            raise EmptyPoolError(f"group {name!r} is empty; name at least one training example.", pointer=pointer)
        rows = rows_of_ids(index, ids, pointer)
        ascending, order = torch.sort(rows, stable=True)
        twice = (ascending[1:] == ascending[:-1]).nonzero().squeeze(1)
        if twice.numel():
            place = int(order[twice + 1].min())
            raise DuplicateIdError(
                f"id {ids[place]!r} is listed twice in group {name!r}; a group has it once.",
                pointer=f"{pointer}/{place}",
            )
        groups.append(Group(name, ascending))
    return Groups(tuple(groups))
