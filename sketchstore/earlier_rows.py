"""Figures that a manifest has of its rows as they were: said to be of other rows, and after a purge without any row's.

The default noise goes on being served, whoever chose it; the record of how it was found, and the distortion measured at
build, are sums over rows of which some are gone by now, or to which others have come.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

OTHER_ROWS = "of_other_rows"
#: What is left of a tuning after a purge: how it was done and what came out, no curve and no part's figures.
_SETTINGS = ("method", "amplitude", "targets", "num_rows", "grid", "relative_noise", "at_edge", OTHER_ROWS)
#: Figures of single rows in a distortion.
_OF_ONE_ROW = ("by_query", "sketch_error_max")


def tuned_on_these(tuning: Mapping[str, JsonValue], num_rows: int) -> dict[str, JsonValue]:
    """Complete the record of a tuning with the rows that it is of.

    Args:
        tuning: How the noise was found.
        num_rows: Rows of the index.

    Returns:
        The record, as the manifest keeps it.
    """
    return {"num_rows": num_rows, **tuning, OTHER_ROWS: False}


def rows_changed(fields: dict[str, Any]) -> None:
    """Say of what was measured that it was on other rows, as rows have gone or come.

    Args:
        fields: The manifest's fields as JSON values, changed in place.
    """
    for name in ("noise_tuning", "distortion"):
        record = fields[name]
        if isinstance(record, dict) and not record.get("exact"):
            fields[name] = {**record, OTHER_ROWS: True}


def forget_rows(fields: dict[str, Any]) -> list[str]:
    """Drop what was computed with rows that a purge takes away: the curve, and every figure of a single row.

    A noise that was tuned after the rows had been withdrawn keeps its curve. Free JSON of another writer goes whole,
    since it may hold anything.

    Args:
        fields: The manifest's fields as JSON values, changed in place.

    Returns:
        What was dropped, in words.
    """
    dropped = []
    tuning, distortion = fields["noise_tuning"], fields["distortion"]
    if tuning is not None and not (isinstance(tuning, dict) and tuning.get(OTHER_ROWS) is False):
        settings = {name: tuning[name] for name in _SETTINGS if name in tuning} if isinstance(tuning, dict) else None
        if settings != tuning:
            fields["noise_tuning"] = settings
            dropped.append("the curve that the default noise was tuned by")
    if distortion is not None and not (isinstance(distortion, dict) and distortion.get("exact")):
        known = isinstance(distortion, dict) and {"kernel", "nats"} <= set(distortion)
        sums = _without(distortion, _OF_ONE_ROW) if known else None
        if sums != distortion:
            fields["distortion"] = sums
            dropped.append("the distortion's figures of single rows" if known else "the distortion")
    return dropped


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {name: _without(part, names) for name, part in value.items() if name not in names}
    return [_without(part, names) for part in value] if isinstance(value, list) else value


def is_of_other_rows(record: JsonValue, num_rows: int) -> bool:
    """Say whether a record of a manifest is of other rows than the index has.

    Args:
        record: ``noise_tuning`` or ``distortion``.
        num_rows: Rows of the index.

    Returns:
        Whether it says so, or names another number of rows, as records of before do.
    """
    return isinstance(record, dict) and (bool(record.get(OTHER_ROWS)) or record.get("num_rows", num_rows) != num_rows)


def noise_of_other_rows(noise: float | None, tuning: JsonValue, num_rows: int) -> str | None:
    """Say that a default noise was tuned on other rows.

    Args:
        noise: The default relative noise.
        tuning: How it was found.
        num_rows: Rows of the index.

    Returns:
        A sentence; None where there is nothing to say.
    """
    if noise is None or not isinstance(tuning, dict) or not is_of_other_rows(tuning, num_rows):
        return None
    rows = tuning.get("num_rows")
    then = f"{rows:,}" if isinstance(rows, int) else "other"
    now = "other rows" if rows == num_rows else f"{num_rows:,}"
    return f"default_relative_noise {noise:g} was tuned on {then} rows, the index now has {now}: `indexer tune` again"
