"""POST …/information: groups by ids and by metadata, over HTTP, against the oracles and against …/scores."""

from typing import Any

import httpx
import pytest

from service.engine import Engine
from tests import oracles
from tests.indexer.attributor.asking import comparable

pytestmark = pytest.mark.anyio
ROW = {"type": "row", "split": "query", "row": 1}


async def ask(http: httpx.AsyncClient, index: str = "own", status: int = 200, **fields: Any) -> Any:
    response = await http.post(f"/v1/indexes/{index}/information", json=fields)
    assert response.status_code == status, response.text
    return response.json()


async def test_groups_of_ids_have_the_nats_of_scores(http: httpx.AsyncClient) -> None:
    ids = [f"train:{row}" for row in range(0, 60, 7)]
    answer = await ask(http, "margin", query=ROW, groups={"one": ids}, relative_noise=1.0)
    scores = (
        await http.post("/v1/indexes/margin/scores", json={"query": ROW, "ids": ids, "relative_noise": 1.0})
    ).json()
    (group,) = answer["groups"]
    assert group["infogain_nats"] == pytest.approx(scores["set"]["infogain_nats"], rel=1e-9)
    assert group["infoloss_nats"] == pytest.approx(scores["set"]["infoloss_nats"], rel=1e-9)
    assert group["fraction"] == pytest.approx(group["infogain_nats"] / answer["available_nats"])
    assert (group["num_rows"], group["num_comparable"]) == (9, 9)
    assert answer["index"]["name"] == "margin"
    assert answer["noise_variance"] == scores["noise_variance"]
    assert (answer["removal_order"], answer["warnings"]) == ([], [])


async def test_a_mean_over_queries_is_the_mean_of_the_oracles(http: httpx.AsyncClient, engine: Engine) -> None:
    queries = [{"type": "row", "row": row} for row in range(5)]
    answer = await ask(http, "margin", queries=queries, groups={"by": "source"}, noise_variance=5.0, removal_order=9)
    index = engine.served("margin").index
    resolved = [engine.served("margin").attributor.resolve_query_row(row) for row in range(5)]
    _, sketches = comparable(index, resolved[0])
    for number, group in enumerate(answer["groups"]):
        members = list(range(number, 60, 2))
        gains = [oracles.info_gain(query.sketch, sketches[members], 5.0) for query in resolved]
        losses = [oracles.info_loss(query.sketch, sketches, members, 5.0) for query in resolved]
        assert group["infogain_nats"] == pytest.approx(sum(gains) / 5, rel=1e-8)
        assert group["infoloss_nats"] == pytest.approx(sum(losses) / 5, rel=1e-7)
    assert [step["rank"] for step in answer["removal_order"]] == [1, 2]
    assert answer["removal_order"][0]["step_nats"] == max(group["infoloss_nats"] for group in answer["groups"])
    assert answer["removal_order"][-1]["cumulative_nats"] == pytest.approx(answer["available_nats"], rel=1e-8)
    assert answer["num_queries"] == 5


async def test_queries_of_several_units_echo_the_one_they_share(http: httpx.AsyncClient) -> None:
    queries = [{"type": "row", "row": row} for row in (1, 2)]
    answer = await ask(http, queries=queries, groups={"by": "label"}, relative_noise=0.5)
    assert (answer["noise_variance"], answer["relative_noise"]) == (None, 0.5)


@pytest.mark.parametrize(
    ("fields", "pointer", "code"),
    [
        ({"groups": {"by": "source"}}, "", "invalid_value"),
        ({"query": ROW, "queries": [ROW], "groups": {"by": "source"}}, "", "invalid_value"),
        ({"query": ROW}, "/groups", "missing_field"),
        ({"query": ROW, "groups": {}}, "/groups", "wrong_length"),
        ({"query": ROW, "groups": {"a": []}}, "/groups/a", "wrong_length"),
        ({"query": ROW, "groups": {"by": ["train:99"]}}, "/groups/by/0", "unknown_id"),
        ({"query": ROW, "groups": {"by": "source", "a": ["train:1"]}}, "/groups/a", "unknown_field"),
        ({"query": ROW, "groups": {"by": "colour"}}, "/groups/by", "unknown_metadata"),
        ({"query": ROW, "groups": {"a": ["train:1", "train:1"]}}, "/groups/a/1", "duplicate_id"),
        ({"query": {"type": "row", "row": 77}, "groups": {"by": "source"}}, "/query/row", "unknown_row"),
        ({"queries": [ROW, {"type": "row", "row": 77}], "groups": {"by": "source"}}, "/queries/1/row", "unknown_row"),
        ({"queries": [ROW, {"type": "raw"}], "groups": {"by": "source"}}, "/queries/1/type", "invalid_value"),
        ({"query": ROW, "groups": {"by": "source"}, "relative_noise": 0}, "/relative_noise", "out_of_range"),
        ({"query": ROW, "groups": {"by": "source"}, "removal_order": -1}, "/removal_order", "out_of_range"),
        ({"query": ROW, "groups": {"a": [f"train:{n}" for n in range(41)]}}, "/groups/a", "limit_exceeded"),
        ({"query": ROW, "groups": {"by": "source"}, "exclude_ids": ["train:x"]}, "/exclude_ids/0", "unknown_id"),
    ],
)
async def test_what_cannot_be_answered_is_refused_at_its_place(
    http: httpx.AsyncClient, fields: dict[str, Any], pointer: str, code: str
) -> None:
    problem = await ask(http, status=422, **fields)
    assert [(item["pointer"], item["code"]) for item in problem["errors"]] == [(pointer, code)]
