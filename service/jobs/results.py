"""The items of a job as JSON, as NDJSON and as Parquet, none of them held in memory as a whole."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service.errors import NotAcceptableError
from service.jobs.stored_job import Item, StoredJob
from service.schemas.jobs import Job

JSON, NDJSON, PARQUET = "application/json", "application/x-ndjson", "application/vnd.apache.parquet"
FORMS = (JSON, NDJSON, PARQUET)
#: Items turned into one row group at a time.
GROUP_ITEMS = 2000
READ_BYTES = 1 << 20

_ITEM: list[tuple[str, pa.DataType]] = [("position", pa.int64()), ("status", pa.int64()), ("problem_code", pa.string())]
#: Columns by type of job: one row for a hit, a pick, or a subset of a query; one for an item that is a problem.
COLUMNS: dict[str, list[tuple[str, pa.DataType]]] = {
    "attributions": [
        *_ITEM,
        ("revision", pa.string()),
        ("method", pa.string()),
        ("noise_variance", pa.float64()),
        ("relative_noise", pa.float64()),
        ("query_label", pa.int64()),
        ("infogain_nats", pa.float64()),
        ("infoloss_nats", pa.float64()),
        ("available_nats", pa.float64()),
        ("exact", pa.bool_()),
        ("rank", pa.int64()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("label", pa.int64()),
        ("score", pa.float64()),
        ("covariance", pa.float64()),
        ("step_nats", pa.float64()),
        ("cumulative_nats", pa.float64()),
        ("represents", pa.int64()),
        ("metadata", pa.string()),
    ],
    "coreset": [
        ("position", pa.int64()),
        ("rank", pa.int64()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("label", pa.int64()),
        ("score", pa.float64()),
        ("mean_nats", pa.float64()),
    ],
    "evaluation": [
        *_ITEM,
        ("noise_variance", pa.float64()),
        ("relative_noise", pa.float64()),
        ("available_nats", pa.float64()),
        ("group", pa.string()),
        ("infogain_nats", pa.float64()),
        ("infoloss_nats", pa.float64()),
    ],
}


def form_of(accept: str) -> str:
    """Choose the form of a result by an Accept header.

    Args:
        accept: The header; empty accepts anything.

    Returns:
        The media type: of those accepted with the largest q, the first named.

    Raises:
        NotAcceptableError: If none of ours is accepted.
    """
    wanted: list[tuple[float, str]] = []
    for item in accept.lower().split(",") if accept.strip() else ["*/*"]:
        media_type, *parameters = (part.strip() for part in item.split(";"))
        quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        weight = float(quality) if quality.replace(".", "", 1).isdecimal() else 0.0
        form = media_type if media_type in FORMS else JSON if media_type in ("*/*", "application/*") else None
        if form is not None and weight > 0:
            wanted.append((weight, form))
    if not wanted:
        raise NotAcceptableError(f"Accept is {accept[:200]!r}; results are {', '.join(FORMS)}", allowed=list(FORMS))
    return max(wanted, key=lambda item: item[0])[1]


def as_json(job: Job, facts: dict[str, Any], items: Iterable[Item]) -> Iterator[bytes]:
    """Write a result as one JSON object.

    Args:
        job: The job.
        facts: What holds for all items.
        items: The items.

    Yields:
        Parts of the text.
    """
    yield f'{{"job":{job.model_dump_json()},"facts":{json.dumps(facts)},"items":['.encode()
    comma = ""
    for _, body in items:
        yield (comma + _text(body)).encode()
        comma = ","
    yield b"]}"


def as_ndjson(items: Iterable[Item]) -> Iterator[bytes]:
    """Write one item a line.

    Args:
        items: The items.

    Yields:
        Lines.
    """
    for _, body in items:
        yield _text(body).encode() + b"\n"


def as_parquet(job: StoredJob, items: Iterator[Item], folder: Path) -> Iterator[bytes]:
    """Write a Parquet file.

    Args:
        job: The job.
        items: Its items.
        folder: Where the file may be put together: its end is known only when all of it is.

    Yields:
        Parts of the file.
    """
    schema = pa.schema(COLUMNS[job.type]).with_metadata(
        {"job": job.id, "index": job.index_name, "revision": job.revision, "facts": json.dumps(job.facts)}
    )
    with tempfile.TemporaryFile(dir=folder) as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            while group := list(islice(items, GROUP_ITEMS)):
                rows = [row for _, body in group for row in rows_of(job.type, body)]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        file.seek(0)
        while part := file.read(READ_BYTES):
            yield part


def rows_of(kind: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Turn an item into rows of the Parquet table.

    Args:
        kind: The type of the job.
        body: The item.

    Returns:
        A row for every hit or subset, or the pick itself; one row for a problem, and for an answer without hits.
    """
    if kind == "coreset":
        return [body]
    item: dict[str, Any] = {"position": body["position"], "status": body["status"]}
    found = body["body"]
    if body["status"] != 200:
        return [item | {"problem_code": found["code"]}]
    item |= {"noise_variance": found["noise_variance"], "relative_noise": found["relative_noise"]}
    if kind == "evaluation":
        item["available_nats"] = found["available_nats"]
        return [
            item
            | {"group": group["name"], "infogain_nats": group["infogain_nats"], "infoloss_nats": group["infoloss_nats"]}
            for group in found["groups"]
        ]
    information = found["information"]
    item |= {
        "revision": found["index"]["revision"],
        "method": found["method"],
        "query_label": found["query"]["label"],
        "infogain_nats": information["infogain_nats"],
        "infoloss_nats": information["infoloss_nats"],
        "available_nats": information["available_nats"],
        "exact": found["search"]["exact"],
    }
    hits = [
        {**hit, "represents": hit["represents"]["count"], "metadata": _json_of(hit.get("metadata"))}
        for hit in found["hits"]
    ]
    return [item | hit for hit in hits] or [item]


def _json_of(metadata: dict[str, Any] | None) -> str | None:
    return None if metadata is None else json.dumps(metadata, ensure_ascii=False)


def _text(body: dict[str, Any]) -> str:
    return json.dumps(body, separators=(",", ":"), allow_nan=False)
