"""What groups of training examples tell queries, and what queries lose if a group is withdrawn: nats by group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.group_information import GroupInformation
from indexer.attributor.errors import EmptyPoolError, MissingSpectrumError
from indexer.attributor.groups import Group
from indexer.attributor.noise import Noise, naming_the_noise, resolve_noise
from indexer.attributor.pool import Pool, positions_in, resolve_pool, rows_to_exclude
from indexer.attributor.queries import check_query
from indexer.attributor.questions import CRITERIA, CandidateFilter, QuerySketch, check_noise
from indexer.attributor.spectra import Spectra
from indexer.attributor.stored_rows import StoredRows
from sketchstore.reader import Index

#: Excluded rows read at a time.
_READ_ROWS = 2048


@dataclass(frozen=True)
class GroupQuestion:
    """What do these groups tell these queries?

    Attributes:
        queries: At least one.
        groups: At least one.
        noise_variance: σ² in squared measurement units.
        relative_noise: σ² in units of the mean squared norm of the rows comparable with a query. Not both; neither: the
            index's tuned default, else 1.0 with a warning.
        criteria: ``infogain``, ``infoloss`` or both.
        exclude_ids: Examples that leave D, and every group.
        removals: How many groups to remove one after the other, each time the one that costs most.
    """

    queries: Sequence[QuerySketch]
    groups: Sequence[Group]
    noise_variance: float | None = None
    relative_noise: float | None = None
    criteria: Sequence[str] = CRITERIA
    exclude_ids: Sequence[str] | None = None
    removals: int = 0


@dataclass(frozen=True)
class Withdrawal:
    """One step of the removal order.

    Attributes:
        group: Place of the group among the question's.
        step_nats: InfoLoss of removing it after those before it, mean over the queries.
        cumulative_nats: InfoLoss of all groups removed so far.
    """

    group: int
    step_nats: float
    cumulative_nats: float


@dataclass(frozen=True)
class GroupNats:
    """Nats by query and group.

    Attributes:
        infogain: float64 [q, g]; None where it was not asked for. 0 where a group has no row comparable with a query.
        infoloss: float64 [q, g]; as ``infogain``.
        available: InfoGain of all of D about each query, float64 [q].
        num_comparable: Rows of each group that are comparable with a query at least, g of them.
        noises: σ² of each query.
        removal_order: The groups whose removal costs most, one after the other.
    """

    infogain: Tensor | None
    infoloss: Tensor | None
    available: Tensor
    num_comparable: tuple[int, ...]
    noises: tuple[Noise, ...]
    removal_order: tuple[Withdrawal, ...]


class _Together:
    """Queries that meet the same D, and the positions of every group in it.

    Args:
        pool: Their rows.
        noise: Their noise.
        known: The queries given D.
        places: Which of the question's queries they are.
        groups: Positions in D of each group.
    """

    def __init__(
        self, pool: Pool, noise: Noise, known: GroupInformation, places: list[int], groups: list[Tensor]
    ) -> None:
        self.pool, self.noise = pool, noise
        self.known = known
        self.places = places
        self.groups = groups

    def remove(self, group: int) -> "_Together":
        """Remove a group from D, and from every other group.

        Args:
            group: Its place.

        Returns:
            The same queries given what is left.
        """
        if not self.groups[group].numel():
            return self
        left, kept = self.known.without(self.groups[group])
        groups = [positions_in(kept, part[torch.isin(part, kept)]) for part in self.groups]
        return _Together(self.pool, self.noise, left, self.places, groups)


def group_nats(
    index: Index,
    spectra: Spectra,
    stored: Callable[[str], StoredRows],
    question: GroupQuestion,
    check: Callable[[], None],
) -> GroupNats:
    """Compute what groups tell queries.

    Args:
        index: The index.
        spectra: Its Gram matrices.
        stored: The stored rows of a view.
        question: What is asked.
        check: Called between groups; may raise to stop.

    Returns:
        The nats.
    """
    check_noise(question.noise_variance, question.relative_noise)
    with naming_the_noise(index, question.queries[0], question.noise_variance):
        return _compute(index, spectra, stored, question, check)


def _compute(
    index: Index,
    spectra: Spectra,
    stored: Callable[[str], StoredRows],
    question: GroupQuestion,
    check: Callable[[], None],
) -> GroupNats:
    batches = [_together(index, spectra, stored, question, places) for places in _by_conditioning_set(index, question)]
    count, width = len(question.queries), len(question.groups)
    wanted = set(question.criteria)
    gains = torch.zeros(count, width, dtype=torch.float64)
    losses = torch.zeros(count, width, dtype=torch.float64)
    available = torch.zeros(count, dtype=torch.float64)
    noises: dict[int, Noise] = {}
    comparable: list[list[Tensor]] = [[] for _ in question.groups]
    for batch in batches:
        available[batch.places] = batch.known.gain_nats
        noises.update(dict.fromkeys(batch.places, batch.noise))
        for number, positions in enumerate(batch.groups):
            comparable[number].append(batch.pool.conditioning[positions])
            if not positions.numel():
                continue
            check()
            if "infogain" in wanted:
                gains[batch.places, number] = batch.known.gains(positions)
            if "infoloss" in wanted:
                losses[batch.places, number] = batch.known.losses(positions)
    return GroupNats(
        infogain=gains if "infogain" in wanted else None,
        infoloss=losses if "infoloss" in wanted else None,
        available=available,
        num_comparable=tuple(int(torch.unique(torch.cat(rows)).numel()) for rows in comparable),
        noises=tuple(noises[place] for place in range(count)),
        removal_order=tuple(_removals(batches, question, check)),
    )


def _by_conditioning_set(index: Index, question: GroupQuestion) -> list[list[int]]:
    # Places of the queries that meet the same D, in order of the first.
    found: dict[tuple[str, int | None, tuple[int, ...]], list[int]] = {}
    for place, query in enumerate(question.queries):
        check_query(index, query)
        label = query.label if query.view in index.views and index.view(query.view).comparable != "all" else None
        found.setdefault((query.view, label, tuple(sorted(query.exclude_rows))), []).append(place)
    return list(found.values())


def _together(
    index: Index,
    spectra: Spectra,
    stored: Callable[[str], StoredRows],
    question: GroupQuestion,
    places: list[int],
) -> _Together:
    first = question.queries[places[0]]
    excluded = None if question.exclude_ids is None else list(question.exclude_ids)
    if excluded is not None:
        rows_to_exclude(index, excluded, "/exclude_ids")
    try:
        pool = resolve_pool(index, first, CandidateFilter(exclude_ids=excluded), "comparable")
    except EmptyPoolError as error:
        raise EmptyPoolError(
            "nothing is left of D: every row comparable with a query is excluded. Exclude fewer.",
            pointer="/exclude_ids",
        ) from error
    noise = resolve_noise(index, pool.view.name, pool.label, question.noise_variance, question.relative_noise)
    if not spectra.available(pool.view, pool.label):
        size = min(pool.comparable.numel(), pool.view.sketch_dim)
        raise MissingSpectrumError(
            f"the Gram matrix of partition {pool.view.partition(pool.label)!r} of view {pool.view.name!r} is not "
            f"stored, and with {size} rows and columns it is too large to compute while a question waits (at most "
            f"{spectra.max_computed_size}). Build it with `indexer derive`.",
            pointer="/groups",
        )
    rows = stored(pool.view.name)
    gram = spectra.gram(pool.view, pool.label)
    is_kernel = pool.comparable.numel() <= pool.view.sketch_dim
    if pool.excluded.numel():
        if is_kernel:
            kept = positions_in(pool.comparable, pool.conditioning)
            gram = gram[kept][:, kept]
        else:
            gram = gram.clone()
            for part in torch.split(pool.comparable[pool.excluded], _READ_ROWS):
                left_out = rows.sketches(part)
                gram.addmm_(left_out.T, left_out, alpha=-1)
    known = GroupInformation(
        gram,
        "kernel" if is_kernel else "gram",
        int(pool.conditioning.numel()),
        torch.stack([question.queries[place].sketch for place in places]).double(),
        noise.variance,
        lambda positions: rows.sketches(pool.conditioning[positions]),
    )
    groups = [
        positions_in(pool.conditioning, group.rows[torch.isin(group.rows, pool.conditioning)])
        for group in question.groups
    ]
    return _Together(pool, noise, known, places, groups)


def _removals(batches: list[_Together], question: GroupQuestion, check: Callable[[], None]) -> list[Withdrawal]:
    # Each time the group whose removal costs most nats, mean over the queries; the first of those that tie.
    order: list[Withdrawal] = []
    left = [number for number in range(len(question.groups)) if any(batch.groups[number].numel() for batch in batches)]
    cumulative = 0.0

    def cost(number: int) -> float:
        check()
        losses = [batch.known.losses(batch.groups[number]) for batch in batches if len(batch.groups[number])]
        return sum(float(each.sum()) for each in losses) / len(question.queries)

    for _ in range(min(question.removals, len(left))):
        costs = {number: cost(number) for number in left}
        worst = max(left, key=lambda number: (costs[number], -number))
        cumulative += costs[worst]
        order.append(Withdrawal(worst, costs[worst], cumulative))
        left.remove(worst)
        if len(order) < question.removals and left:
            batches = [batch.remove(worst) for batch in batches]
    return order
