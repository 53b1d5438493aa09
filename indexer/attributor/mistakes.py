"""Everything that is wrong with a question at once, for a caller who would mend it in one go.

A question is refused at its first mistake; only then is the rest of it looked through here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

from indexer.attributor.errors import QuestionError
from indexer.attributor.pool import (
    check_comparable,
    check_labels,
    partition_label,
    query_view,
    resolve_pool,
    rows_of_ids,
    rows_to_exclude,
    rows_where,
)
from indexer.attributor.questions import CandidateFilter, QuerySketch, check_budget, check_noise
from sketchstore.reader import Index

EVERY_ROW = CandidateFilter()
MOST_MISTAKES = 20
"""Mistakes that are told; looking for the id that was meant takes a while each time."""


def mistakes_in(
    index: Index,
    query: QuerySketch | None,
    *,
    noise_variance: float | None,
    relative_noise: float | None,
    wanted: CandidateFilter = EVERY_ROW,
    ids: Mapping[str, Sequence[str] | None],
    condition: str = "comparable",
    budget: int | None = None,
) -> list[QuestionError]:
    """Look for every mistake of a question that can be found whatever the others are.

    Args:
        index: The index.
        query: The query; None where it could not be resolved, so that nothing is said about what compares with it.
        noise_variance: σ² in measurement², if given.
        relative_noise: σ² relative to the mean squared norm, if given.
        wanted: The filter.
        ids: Lists of training ids by their pointer in the request.
        condition: ``comparable`` or ``pool``.
        budget: The budget where it is not to be clipped.

    Returns:
        The mistakes, at most ``MOST_MISTAKES``.
    """

    def everything() -> Iterator[QuestionError]:
        yield from _caught(partial(check_noise, noise_variance, relative_noise))
        label = None
        alone = True  # whether query and filter are right, so that there is a pool to hold the budget against
        if query is not None:
            try:
                label = partition_label(query_view(index, query), query)
            except QuestionError as error:
                alone = False
                yield error
        for mistake in _in_filter(index, label, wanted, ids):
            alone = False
            yield mistake
        if alone and query is not None and budget is not None:
            yield from _caught(partial(_check_budget, index, query, wanted, condition, budget))

    return list(islice(everything(), MOST_MISTAKES))


def _in_filter(
    index: Index, label: int | None, wanted: CandidateFilter, ids: Mapping[str, Sequence[str] | None]
) -> Iterator[QuestionError]:
    for place, named in enumerate(wanted.labels or ()):
        yield from _caught(partial(check_labels, index, [named], label), f"/filter/labels/{place}")
    for pointer, listed in ids.items():
        for place, id in enumerate(listed or ()):
            yield from _caught(partial(_check_id, index, id, label, pointer), f"{pointer}/{place}")
    for name, values in (wanted.where or {}).items():
        yield from _caught(partial(rows_where, index, {name: values}))


def _check_id(index: Index, id: str, label: int | None, pointer: str) -> None:
    if pointer.endswith("exclude_ids"):  # what is left out need not compare with the query
        rows_to_exclude(index, [id], pointer)
    else:
        check_comparable(index, rows_of_ids(index, [id], pointer), label, pointer)


def _check_budget(index: Index, query: QuerySketch, wanted: CandidateFilter, condition: str, budget: int) -> None:
    check_budget(budget, int(resolve_pool(index, query, wanted, condition).candidates.numel()))


def _caught(check: Callable[[], object], pointer: str | None = None) -> Iterator[QuestionError]:
    try:
        check()
    except QuestionError as error:
        error.pointer = error.pointer if pointer is None else pointer
        yield error
