"""A question about groups becomes the attributor's, and its nats by query and group become an answer."""

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from indexer.attributor import Attributor, GroupNats, GroupQuestion, Groups, QuerySketch
from service.schemas.groups import (
    GroupInformation,
    GroupsByColumn,
    InformationRequest,
    InformationResponse,
    WantedGroups,
    WithdrawnGroup,
)
from service.served_index import ServedIndex


def information(
    served: ServedIndex, asked: InformationRequest, most_groups: int, check: Callable[[], None]
) -> InformationResponse:
    """Compute what the groups of a request tell its queries, mean over them.

    Args:
        served: The index.
        asked: The request.
        most_groups: How many groups a column may make.
        check: Called between queries and groups; may raise to stop.

    Returns:
        The answer.
    """
    began = time.perf_counter()
    if asked.query is not None:
        queries = [served.queries.resolve(asked.query, asked.target, "/query")[0]]
    else:
        queries = served.queries.resolve_all(asked.queries or [], asked.target, check)
    groups = groups_of(served.attributor, asked.groups, most_groups)
    prepared = time.perf_counter()
    nats = served.attributor.group_nats(_question_of(queries, groups, asked), check)
    computed = time.perf_counter()
    variances = {noise.variance for noise in nats.noises}
    relatives = {noise.relative for noise in nats.noises}
    return InformationResponse(
        index=served.reference,
        num_queries=len(queries),
        noise_variance=variances.pop() if len(variances) == 1 else None,
        relative_noise=relatives.pop() if len(relatives) == 1 else None,
        available_nats=float(nats.available.mean()),
        groups=[_facts(groups, nats, number) for number in range(len(groups.groups))],
        removal_order=[
            WithdrawnGroup(
                rank=rank,
                name=groups.groups[step.group].name,
                step_nats=step.step_nats,
                cumulative_nats=step.cumulative_nats,
            )
            for rank, step in enumerate(nats.removal_order, 1)
        ],
        warnings=_warnings_of(groups, nats),
        timings_ms={
            "prepare": 1e3 * (prepared - began),
            "nats": 1e3 * (computed - prepared),
            "total": 1e3 * (computed - began),
        },
    )


def groups_of(attributor: Attributor, wanted: WantedGroups, most_groups: int) -> Groups:
    """Make the groups of a request.

    Args:
        attributor: Of the index.
        wanted: How they are given.
        most_groups: How many groups a column may make.

    Returns:
        The groups.
    """
    return attributor.groups(wanted.by if isinstance(wanted, GroupsByColumn) else wanted, most_groups)


def _question_of(queries: Sequence[QuerySketch], groups: Groups, asked: InformationRequest) -> GroupQuestion:
    return GroupQuestion(
        queries=queries,
        groups=groups.groups,
        noise_variance=asked.noise_variance,
        relative_noise=asked.relative_noise,
        criteria=tuple(asked.criteria),
        exclude_ids=asked.exclude_ids,
        removals=asked.removal_order,
    )


def _warnings_of(groups: Groups, nats: GroupNats) -> list[str]:
    told = list(dict.fromkeys(noise.warning for noise in nats.noises if noise.warning is not None))
    if groups.num_without:
        told.append(f"{groups.num_without} rows have no value of the column and are in no group.")
    return told


def _facts(groups: Groups, nats: GroupNats, number: int) -> GroupInformation:
    group = groups.groups[number]
    gain, loss = _mean(nats.infogain, number), _mean(nats.infoloss, number)
    available = float(nats.available.mean())
    return GroupInformation(
        name=group.name,
        num_rows=int(group.rows.numel()),
        num_comparable=nats.num_comparable[number],
        infogain_nats=gain,
        infoloss_nats=loss,
        fraction=gain / available if gain is not None and available > 0 else None,
    )


def _mean(nats: Tensor | None, number: int) -> float | None:
    return None if nats is None else float(nats[:, number].mean())
