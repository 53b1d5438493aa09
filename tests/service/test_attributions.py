"""Answers over HTTP: the fields of design.md section 6, and that HTTP changes nothing about them."""

import json
import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.calls import EventReader
from service.engine import Engine
from service.schemas.answers import AnswerFacts, Hit, StreamStart
from tests.service.conftest import DIM

pytestmark = pytest.mark.anyio

ROW = {"type": "row", "split": "query", "row": 1}
TIMELESS = ("timings_ms",)


def timeless(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in TIMELESS}


async def ask(http: httpx.AsyncClient, index: str = "own", **fields: Any) -> dict[str, Any]:
    response = await http.post(f"/v1/indexes/{index}/attributions", json={"query": ROW} | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_an_answer_has_every_field_of_the_contract(http: httpx.AsyncClient) -> None:
    answer = await ask(http, budget=5, relative_noise=1.0, rescore=["infogain", "infoloss"])
    assert answer["index"]["name"] == "own"
    assert len(answer["index"]["revision"]) == 32
    assert answer["method"] == "infogain_approx"
    assert answer["relative_noise"] == 1.0
    assert answer["noise_variance"] > 0
    assert answer["query"]["label"] == answer["query"]["predicted_label"] == 1
    assert 0 < answer["query"]["posterior_variance"] < answer["query"]["prior_variance"]
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3, 4, 5]
    for hit in answer["hits"]:
        assert hit["id"] == f"train:{hit['row']}"
        assert hit["label"] == 1
        assert set(hit["represents"]) == {"count", "ids"}
    assert answer["nats_criterion"] == "infogain"
    assert answer["score_unit"] == "measurement^4"
    information = answer["information"]
    assert math.isclose(information["infogain_nats"], answer["hits"][-1]["cumulative_nats"], rel_tol=1e-9)
    assert information["infoloss_nats"] > 0
    assert math.isclose(information["fraction"], information["infogain_nats"] / information["available_nats"])
    assert answer["search"]["engine"] == "faiss"
    assert answer["search"]["factory"] == "Flat"
    assert answer["search"]["exact"] is True
    assert answer["stopped"] == "budget"
    assert answer["warnings"] == []
    assert answer["timings_ms"]


@pytest.mark.parametrize("method", ["infogain_approx", "infogain", "infoloss", "random"])
@pytest.mark.parametrize("index", ["own", "margin", "class"])
async def test_every_method_answers_on_every_kind_of_index(http: httpx.AsyncClient, index: str, method: str) -> None:
    answer = await ask(http, index, method=method, budget=4, relative_noise=1.0)
    assert len({hit["row"] for hit in answer["hits"]}) == 4
    assert answer["nats_criterion"] == ("infoloss" if method == "infoloss" else "infogain")


async def test_certified_and_literal_pick_the_same(http: httpx.AsyncClient) -> None:
    certified = await ask(http, strategy="certified", budget=10, relative_noise=0.1)
    literal = await ask(http, strategy="literal", budget=10, relative_noise=0.1)
    assert [hit["row"] for hit in certified["hits"]] == [hit["row"] for hit in literal["hits"]]
    assert certified["search"]["index_queries"] <= literal["search"]["index_queries"]


async def test_an_untuned_noise_is_a_warning_and_a_tuned_one_is_used(http: httpx.AsyncClient) -> None:
    untuned = await ask(http, "own")
    assert untuned["relative_noise"] == 1.0
    assert untuned["warnings"]
    tuned = await ask(http, "class")
    assert tuned["relative_noise"] == 0.5
    assert tuned["warnings"] == []


async def test_a_training_row_asks_as_its_id_does_and_leaves_itself_out(http: httpx.AsyncClient) -> None:
    by_id = await ask(http, "margin", query={"type": "train_id", "id": "train:7"}, relative_noise=1.0)
    by_row = await ask(http, "margin", query={"type": "row", "split": "train", "row": 7}, relative_noise=1.0)
    assert timeless(by_id) == timeless(by_row)
    assert all(hit["row"] != 7 for hit in by_id["hits"])
    itself = await ask(
        http, "margin", query={"type": "train_id", "id": "train:7", "include_self": True}, relative_noise=1.0
    )
    assert itself["hits"][0]["row"] == 7


async def test_a_sketch_from_the_service_asks_as_its_row_does(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/indexes/own/sketches", json={"queries": [ROW]})
    assert response.status_code == 200, response.text
    (sketch,) = response.json()["sketches"]
    assert len(sketch["values"]) == DIM
    assert sketch["label"] == 1
    by_row = await ask(http, relative_noise=1.0)
    by_sketch = await ask(
        http, query={"type": "sketch", "values": sketch["values"], "label": sketch["label"]}, relative_noise=1.0
    )
    assert by_sketch["hits"] == by_row["hits"]


async def test_filters_limit_the_candidates(http: httpx.AsyncClient) -> None:
    answer = await ask(
        http, "margin", filter={"labels": [2], "where": {"source": "web"}, "exclude_ids": ["train:1"]}, budget=5
    )
    for hit in answer["hits"]:
        assert hit["label"] == 2
        example = (await http.get(f"/v1/indexes/margin/examples/{hit['row']}")).json()
        assert example["metadata"]["source"] == "web"


@pytest.mark.parametrize(
    ("where", "passes"),
    [
        ({"length": {"gte": 2, "lt": 5}}, lambda metadata: 2 <= metadata["length"] < 5),
        ({"weight": {"gt": 3.5}, "source": ["web", "film"]}, lambda m: m["weight"] > 3.5 and m["source"] == "web"),
        ({"source": {"lte": "cook"}}, lambda metadata: metadata["source"] == "book"),
    ],
    ids=["whole numbers", "with a list", "text"],
)
async def test_filters_take_bounds(
    http: httpx.AsyncClient, where: dict[str, Any], passes: Callable[[Any], bool]
) -> None:
    answer = await ask(http, "margin", filter={"where": where}, budget=50, clip_budget=True, include_metadata=True)
    pages = [await http.get("/v1/indexes/margin/examples", params={"offset": start}) for start in range(0, 60, 20)]
    everything = [example for page in pages for example in page.json()["examples"]]
    expected = {example["id"] for example in everything if passes(example["metadata"])}
    assert {hit["id"] for hit in answer["hits"]} == expected
    assert expected


async def test_a_condition_on_missing_values(http: httpx.AsyncClient) -> None:
    """Every example of this index has a source."""
    for where, status in (({"source": None}, 422), ({"source": [None, "web"]}, 200)):
        response = await http.post(
            "/v1/indexes/margin/attributions",
            json={"query": ROW, "budget": 3, "relative_noise": 1.0, "filter": {"where": where}},
        )
        assert response.status_code == status, response.text
        if status == 422:
            assert response.json()["code"] == "empty_pool"


async def test_hits_come_with_metadata_if_wanted(http: httpx.AsyncClient) -> None:
    plain = await ask(http, "margin", budget=3, relative_noise=1.0)
    assert not any("metadata" in hit for hit in plain["hits"])
    told = await ask(http, "margin", budget=3, relative_noise=1.0, include_metadata=True)
    for hit, without in zip(told["hits"], plain["hits"], strict=True):
        assert {name: value for name, value in hit.items() if name != "metadata"} == without
        assert hit["metadata"] == (await http.get(f"/v1/indexes/margin/examples/{hit['row']}")).json()["metadata"]


async def test_a_clipped_budget_takes_the_whole_pool(http: httpx.AsyncClient) -> None:
    answer = await ask(
        http, budget=50, clip_budget=True, filter={"ids": ["train:0", "train:1", "train:2"]}, index="margin"
    )
    assert len(answer["hits"]) == 3


async def test_scores_equal_the_attribution_of_the_same_set(http: httpx.AsyncClient) -> None:
    answer = await ask(http, budget=3, relative_noise=1.0, rescore=["infogain", "infoloss"])
    ids = [hit["id"] for hit in answer["hits"]]
    response = await http.post("/v1/indexes/own/scores", json={"query": ROW, "relative_noise": 1.0, "ids": ids})
    assert response.status_code == 200, response.text
    scores = response.json()
    assert math.isclose(scores["set"]["infogain_nats"], answer["information"]["infogain_nats"], rel_tol=1e-9)
    assert math.isclose(scores["set"]["infoloss_nats"], answer["information"]["infoloss_nats"], rel_tol=1e-9)
    assert [member["id"] for member in scores["members"]] == ids
    assert math.isclose(scores["members"][0]["infogain_nats"], answer["hits"][0]["step_nats"], rel_tol=1e-9)


async def test_a_batch_gives_each_request_its_own_status(http: httpx.AsyncClient) -> None:
    requests = [
        {"query": ROW, "budget": 3, "relative_noise": 1.0},
        {"query": ROW, "budget": 0},
        {"query": ROW | {"row": 99}},
        {"query": {"type": "sketch", "values": [0] * DIM, "label": 1}},
        {"nothing": 1},
    ]
    response = await http.post("/v1/indexes/own/attributions/batch", json={"requests": requests})
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert [result["status"] for result in results] == [200, 422, 422, 422, 422]
    assert [result["body"].get("code") for result in results] == [
        None,
        "out_of_range",
        "unknown_row",
        "zero_query",
        "invalid_request",  # a field that does not exist, and no query
    ]
    assert results[1]["body"]["errors"][0]["pointer"] == "/budget"
    alone = await ask(http, budget=3, relative_noise=1.0)
    assert timeless(results[0]["body"]) == timeless(alone)


async def test_a_batch_beyond_the_limit_is_refused_whole(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/indexes/own/attributions/batch", json={"requests": [{"query": ROW}] * 9})
    assert response.status_code == 422
    assert response.json()["code"] == "limit_exceeded"


async def test_a_stream_carries_the_same_answer_step_by_step(http: httpx.AsyncClient) -> None:
    alone = await ask(http, budget=4, relative_noise=1.0)
    response = await http.post(
        "/v1/indexes/own/attributions",
        json={"query": ROW, "budget": 4, "relative_noise": 1.0},
        headers={"Accept": "text/event-stream"},
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    names = [line.removeprefix("event: ") for line in response.text.splitlines() if line.startswith("event: ")]
    assert names == ["start", "step", "step", "step", "step", "done"]
    reader = EventReader()
    parts = [part for line in response.text.split("\n") if (part := reader.feed(line)) is not None]
    reader.check_finished()
    start, *hits, done = parts
    assert isinstance(start, StreamStart)
    assert isinstance(done, AnswerFacts)
    assert start.candidates == 20
    assert [hit.model_dump() for hit in hits if isinstance(hit, Hit)] == alone["hits"]
    without_hits = {name: value for name, value in timeless(alone).items() if name != "hits"}
    assert timeless(done.model_dump(mode="json")) == without_hits


async def test_a_question_refused_before_the_stream_is_an_ordinary_problem(http: httpx.AsyncClient) -> None:
    response = await http.post(
        "/v1/indexes/own/attributions",
        json={"query": ROW | {"row": 99}},
        headers={"Accept": "text/event-stream"},
    )
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


async def test_the_same_request_gives_the_same_bytes_apart_from_timings(http: httpx.AsyncClient) -> None:
    first, second = [json.dumps(timeless(await ask(http, budget=7))) for _ in range(2)]
    assert first == second


async def test_the_library_answers_as_http_does(http: httpx.AsyncClient, engine: Engine) -> None:
    over_http = await ask(http, budget=5)
    in_process = engine.attribute({"query": ROW, "budget": 5}, "own").model_dump(mode="json")
    assert timeless(in_process) == timeless(over_http)
