"""TRAK, GradDot, RepSim and RelatIF over HTTP: the card lists them, answers are the library's, an example is enough."""

import base64
from pathlib import Path
from typing import Any

import httpx
import pytest

from indexer.attributor import Attributor, Question
from indexer.attributor.baselines import BASELINES
from indexer.build import build_index
from indexer.preparation import BuildSettings
from service.client import Client
from service.local_server import local_server
from sketchstore.reader import open_index

ROW = {"type": "row", "split": "query", "row": 1}


@pytest.mark.anyio
async def test_the_card_lists_the_methods_that_the_index_can_serve(http: httpx.AsyncClient) -> None:
    margin = (await http.get("/v1/indexes/margin")).json()["methods"]
    own = (await http.get("/v1/indexes/own")).json()["methods"]
    assert set(BASELINES) <= set(margin)
    assert set(BASELINES) & set(own) == {"relatif"}


@pytest.mark.anyio
async def test_a_refusal_names_what_the_index_lacks_and_how_to_build_it(http: httpx.AsyncClient) -> None:
    for method, what in (("trak", "indexer build … --measurement margin"), ("repsim", "representation(model, inputs)")):
        response = await http.post("/v1/indexes/own/attributions", json={"query": ROW, "method": method})
        assert response.status_code == 422
        assert what in response.json()["detail"]
        assert response.json()["errors"][0]["allowed"] == (await http.get("/v1/indexes/own")).json()["methods"]


@pytest.mark.anyio
@pytest.mark.parametrize("method", BASELINES)
async def test_an_answer_is_the_library_s(http: httpx.AsyncClient, index_root: Path, method: str) -> None:
    body: dict[str, Any] = {"query": ROW, "method": method, "budget": 5, "relative_noise": 1.0}
    response = await http.post("/v1/indexes/margin/attributions", json=body)
    assert response.status_code == 200, response.text
    asked = Attributor(open_index(index_root / "margin"))
    wanted = asked.answer(Question(asked.resolve_query_row(1), method, 5, relative_noise=1.0))
    assert [(hit["row"], hit["score"]) for hit in response.json()["hits"]] == [
        (hit.row, hit.score) for hit in wanted.hits
    ]
    assert response.json()["score_unit"] == ("measurement^2" if method == "graddot" else "1")


@pytest.mark.anyio
async def test_scores_of_a_set_carry_the_methods_asked_for(http: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {"query": ROW, "relative_noise": 1.0, "ids": ["train:3", "train:5"], "methods": ["trak"]}
    response = await http.post("/v1/indexes/margin/scores", json=body)
    assert response.status_code == 200, response.text
    assert [set(member["scores"]) for member in response.json()["members"]] == [{"trak"}, {"trak"}]
    refused = await http.post("/v1/indexes/own/scores", json=body)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/methods/0"


@pytest.mark.anyio
async def test_a_stream_is_refused_before_it_begins(http: httpx.AsyncClient) -> None:
    body = {"query": {"type": "sketch", "values": [1.0] * 16, "label": 0}, "method": "repsim"}
    response = await http.post("/v1/indexes/margin/attributions", json=body, headers={"Accept": "text/event-stream"})
    assert response.status_code == 422
    assert response.json()["code"] == "no_representation"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    build_index(
        BuildSettings(recipe="digits", measurement="margin", sketch="sjlt", dim=64, limit=300), folder / "digits"
    )
    return folder / "digits"


def test_a_build_stores_the_features_of_its_queries_and_repsim_takes_every_kind_of_query(digits: Path) -> None:
    index = open_index(digits)
    assert index.queries is not None
    width = index.column("representations").shape[1]
    assert index.queries.representations().shape == (index.queries.count, width)
    with local_server(digits, start_seconds=300) as url, Client(url) as client:
        kind, content = index.queries.examples.preview(4) or ("", b"")
        assert kind == "image/png"
        example = {"type": "example", "content": {"image": base64.b64encode(content).decode()}}
        by_example = client.attribute("digits", example, method="repsim", budget=3, relative_noise=1.0)
        by_row = client.attribute(
            "digits", {"type": "row", "split": "query", "row": 4}, method="repsim", budget=3, relative_noise=1.0
        )
        own = client.attribute(
            "digits", {"type": "train_id", "id": "train:9", "include_self": True}, method="repsim", budget=1
        )
    assert [hit.row for hit in by_example.hits] == [hit.row for hit in by_row.hits]
    # The same forward pass in a batch of another size: float32 rounding.
    assert [hit.score for hit in by_example.hits] == pytest.approx([hit.score for hit in by_row.hits], rel=1e-5)
    assert own.hits[0].id == "train:9"
    assert own.hits[0].score == pytest.approx(1.0, abs=1e-12)
