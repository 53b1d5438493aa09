"""Index cards, examples, operations: what can be read."""

import httpx
import pytest

from service.about import ABOUT
from tests.service.conftest import QUERIES, ROWS

pytestmark = pytest.mark.anyio


async def test_info_shows_limits_methods_and_what_nats_do_not_mean(http: httpx.AsyncClient) -> None:
    info = (await http.get("/v1/info")).json()
    assert info["indexes"] == ["class", "margin", "own"]
    assert info["limits"]["max_budget"] == 50
    assert info["methods"] == [
        "infogain_approx",
        "infogain",
        "infoloss",
        "trak",
        "graddot",
        "repsim",
        "relatif",
        "random",
    ]
    assert info["about"] == list(ABOUT)
    assert "whether its label is right" in info["about"][0]


async def test_a_card_says_what_the_index_holds_and_can_answer(http: httpx.AsyncClient) -> None:
    card = (await http.get("/v1/indexes/own")).json()
    assert card["num_rows"] == ROWS
    assert card["measurement"] == "label_logit"
    assert card["views"]["own"]["comparable"] == "label"
    assert sum(card["labels"]["counts"].values()) == ROWS
    assert card["queries"]["count"] == QUERIES
    assert card["query_types"] == ["row", "train_id", "sketch"]
    assert card["recipe"]["loaded"] is False
    assert "--recipe own=FILE" in card["recipe"]["reason"]
    assert card["query_sketch_seconds"] is None
    assert any("untuned" in warning for warning in card["warnings"])
    assert any("within a label" in warning for warning in card["warnings"])
    everything = (await http.get("/v1/indexes")).json()["indexes"]
    assert [each["name"] for each in everything] == ["class", "margin", "own"]
    assert everything[2] == card
    assert everything[0]["default_relative_noise"] == 0.5


async def test_examples_come_in_pages(http: httpx.AsyncClient) -> None:
    seen = []
    for offset in range(0, ROWS + 25, 25):
        page = (await http.get(f"/v1/indexes/own/examples?offset={offset}&limit=25")).json()
        assert page["total"] == ROWS
        seen += [example["row"] for example in page["examples"]]
    assert seen == list(range(ROWS))
    queries = (await http.get("/v1/indexes/own/examples?split=query")).json()
    assert queries["total"] == QUERIES
    assert queries["examples"][1]["id"] == "query:1"
    beyond = (await http.get("/v1/indexes/own/examples?offset=9223372036854775807")).json()
    assert beyond == {"examples": [], "total": ROWS}


async def test_an_example_has_its_metadata_and_its_content(http: httpx.AsyncClient) -> None:
    example = (await http.get("/v1/indexes/own/examples/3")).json()
    assert example["id"] == "train:3"
    assert example["metadata"] == {"source": "web", "length": 3, "weight": 0.75}
    assert example["content_type"] == "image/png"
    content = await http.get("/v1/indexes/own/examples/3/content")
    assert content.headers["content-type"] == "image/png"
    assert content.headers["x-content-type-options"] == "nosniff"
    assert content.content.startswith(b"\x89PNG")
    query = await http.get("/v1/indexes/own/examples/2/content?split=query")
    assert query.headers["content-type"].startswith("text/plain")
    assert query.text == "query 2"


async def test_health_and_metrics(http: httpx.AsyncClient) -> None:
    assert (await http.get("/livez")).json() == {"status": "alive"}
    assert (await http.get("/readyz")).json() == {"status": "ready"}
    await http.post("/v1/indexes/own/attributions", json={"query": {"type": "row", "row": 1}, "method": "random"})
    text = (await http.get("/metrics")).text
    assert 'nattribute_attributions_total{index="own",method="random"} 1.0' in text
    assert 'route="/v1/indexes/{index}/attributions",status="200"' in text
    assert "nattribute_queue_waiting 0.0" in text


async def test_every_answer_carries_a_request_id_and_a_given_one_is_kept(http: httpx.AsyncClient) -> None:
    assert len((await http.get("/livez")).headers["x-request-id"]) == 32
    kept = await http.get("/livez", headers={"X-Request-ID": "mine-1.2"})
    assert kept.headers["x-request-id"] == "mine-1.2"
    replaced = await http.get("/livez", headers={"X-Request-ID": "a b\tc"})
    assert len(replaced.headers["x-request-id"]) == 32


async def test_there_is_no_cross_origin_access(http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/info", headers={"Origin": "https://elsewhere.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]
