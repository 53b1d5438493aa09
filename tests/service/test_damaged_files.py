"""Served with --check use, an index answers what needs no damaged file, and refuses what does by the file's name."""

import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.app import create_app
from service.engine import Engine
from service.settings import Settings
from sketchstore.layout import files_below
from sketchstore.reader import open_index
from tests.reliability.damage import flip_bit

READ_AT_START = {"manifest.json", "derived/manifest.json", "columns/labels.npy", "columns/squared_norms.own.npy"}
BY_ROW = {"query": {"type": "row", "split": "query", "row": 1}, "budget": 3}
BY_ID = {"query": {"type": "train_id", "id": "train:1"}, "budget": 3}
SHARD = "sketches/own/00000.safetensors"


def body_of(**changes: Any) -> dict[str, Any]:
    return {**BY_ID, **changes}


@pytest.fixture
def path(index_root: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(index_root / "own", tmp_path / "own"))
    from indexer.derive import derive

    derive(open_index(copy))  # spectra too
    return copy


async def ask(path: Path, resource: str, body: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
    """One request to a service started on this directory."""
    settings = Settings(index=(f"own={path}",))
    app = create_app(settings, Engine.open(settings))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client,
    ):
        if body is None:
            return await client.get(resource)
        return await client.post(f"/v1/indexes/own/{resource}", json=body, headers=headers)


@pytest.mark.anyio
async def test_a_service_starts_and_describes_an_index_of_which_it_read_norms_and_labels_only(path: Path) -> None:
    for file in set(files_below(path)) - READ_AT_START:
        (path / file).write_bytes(np.random.default_rng(0).bytes((path / file).stat().st_size))
    assert (await ask(path, "/readyz")).status_code == 200
    card = await ask(path, "/v1/indexes/own")
    assert card.json()["num_rows"] == 60
    refused = await ask(path, "attributions", BY_ROW)
    assert (refused.status_code, refused.json()["code"]) == (503, "damaged_index")


#: The damaged file, a request that needs it, and one that does not.
CASES = [
    (SHARD, ("attributions", BY_ID), ("sketches", {"queries": [BY_ROW["query"]]})),
    ("queries/own.safetensors", ("attributions", BY_ROW), ("attributions", BY_ID)),
    ("queries/examples.parquet", ("/v1/indexes/own/examples?split=query", None), ("attributions", BY_ID)),
    ("examples.parquet", ("attributions", BY_ID), ("sketches", {"queries": [BY_ROW["query"]]})),
    ("derived/faiss/own/label-1.faiss", ("attributions", BY_ID), ("attributions", body_of(method="infogain"))),
    ("derived/spectra/own/label-1.safetensors", ("attributions", body_of(method="infoloss")), ("/readyz", None)),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("file", "needs", "does_not"), CASES, ids=[case[0] for case in CASES])
async def test_a_damaged_file_is_refused_where_it_is_needed(
    path: Path, file: str, needs: tuple[str, Any], does_not: tuple[str, Any]
) -> None:
    label = int(open_index(path).labels[1])
    file = file.replace("label-1", f"label-{label}")  # the partition of train:1
    flip_bit(path / file)
    refused = await ask(path, *needs)
    assert (refused.status_code, refused.json()["code"]) == (503, "damaged_index")
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["detail"].startswith(f"{file}: ")
    assert "indexer verify" in refused.json()["detail"]
    answered = await ask(path, *does_not)
    assert answered.status_code == 200, answered.text


@pytest.mark.anyio
async def test_in_a_batch_only_what_needs_the_damaged_file_is_refused(path: Path) -> None:
    flip_bit(path / "queries/own.safetensors")
    results = (await ask(path, "attributions/batch", {"requests": [BY_ROW, BY_ID]})).json()["results"]
    assert [result["status"] for result in results] == [503, 200]


@pytest.mark.anyio
async def test_a_stream_that_meets_a_damaged_file_ends_in_the_problem(path: Path) -> None:
    flip_bit(path / SHARD)
    body = {**BY_ROW, "method": "random", "rescore": ["infogain"]}
    answered = await ask(path, "attributions", body, Accept="text/event-stream")
    assert "damaged_index" in answered.text
    assert "event: done" not in answered.text


@pytest.mark.anyio
async def test_answers_are_those_of_an_index_checked_at_the_start(path: Path) -> None:
    at_use = (await ask(path, "attributions", BY_ROW)).json()
    at_start = Engine.open(Settings(index=(f"own={path}",), check="start")).attribute(BY_ROW).model_dump(mode="json")
    assert at_use.pop("timings_ms").keys() == at_start.pop("timings_ms").keys()
    assert at_use == at_start


def test_weights_are_read_and_refused_at_the_first_example(tmp_path: Path) -> None:
    from indexer.build import build_index
    from indexer.build_settings import BuildSettings
    from service.engine import open_engine
    from service.errors import ExampleUnsupportedError
    from service.problems import problem_of
    from sketchstore.errors import CorruptIndexError
    from tests.service.test_queries_by_example import RECIPE, stored_point

    path = tmp_path / "points"
    build_index(BuildSettings(recipe=RECIPE, measurement="margin", threads=1), path)
    asked = {"query": {"type": "example", "content": stored_point(0)}, "budget": 3}
    whole = open_engine(path, recipe=RECIPE, check="use")
    assert whole.card().query_sketch_seconds is None
    assert whole.attribute(asked).hits == open_engine(path, recipe=RECIPE).attribute(asked).hits
    assert whole.card().query_sketch_seconds > 0
    other = tmp_path / "wider.py"
    other.write_text(Path(RECIPE).read_text().replace("8", "9"))
    with pytest.raises(ExampleUnsupportedError, match="do not fit"):
        open_engine(path, recipe=str(other), check="use").attribute(asked)
    flip_bit(path / "model.safetensors")
    damaged = open_engine(path, recipe=RECIPE, check="use")
    assert len(damaged.attribute({"query": {"type": "row", "row": 0}, "budget": 3}).hits) == 3
    with pytest.raises(CorruptIndexError) as caught:
        damaged.attribute(asked)
    assert problem_of(caught.value, "1").problem.detail.startswith("model.safetensors: ")
