"""Every bad input gets a problem with the right status, code, pointer and allowed values, and the process lives on."""

import json
from typing import Any

import httpx
import pytest

from tests.service.conftest import DIM, QUERIES
from tests.service.problems import ROW, check_alive, check_problem

pytestmark = pytest.mark.anyio

SKETCH = {"type": "sketch", "values": [1.0] * DIM, "label": 1}


def sketch(**changes: Any) -> dict[str, Any]:
    return SKETCH | changes


# name: (index, body, status, code, pointer, something the allowed values must hold)
REFUSALS: dict[str, tuple[str, dict[str, Any], int, str, str | None, Any]] = {
    "NaN in a sketch": (
        "own",
        {"query": sketch(values=[float("nan")] + [1.0] * (DIM - 1))},
        422,
        "not_finite",
        "/query/values/0",
        "finite",
    ),
    "infinity in a sketch": (
        "own",
        {"query": sketch(values=[1.0] * (DIM - 1) + [float("inf")])},
        422,
        "not_finite",
        f"/query/values/{DIM - 1}",
        "finite",
    ),
    "NaN as noise": (
        "own",
        {"query": ROW, "noise_variance": float("nan")},
        422,
        "not_finite",
        "/noise_variance",
        "finite",
    ),
    "negative noise": ("own", {"query": ROW, "relative_noise": -1}, 422, "out_of_range", "/relative_noise", "gt"),
    "wrong dimension": ("own", {"query": sketch(values=[1.0, 2.0])}, 422, "wrong_dimension", "/query/values", str(DIM)),
    "zero query": ("own", {"query": sketch(values=[0.0] * DIM)}, 422, "zero_query", "/query/values", "not zero"),
    "a sketch whose square overflows": (
        "own",
        {"query": sketch(values=[1e200] * DIM)},
        422,
        "norm_out_of_range",
        "/query/values",
        "1e-150",
    ),
    "a sketch whose square vanishes": (
        "own",
        {"query": sketch(values=[1e-200] * DIM)},
        422,
        "norm_out_of_range",
        "/query/values",
        "1e-150",
    ),
    "noise below rounding": (
        "own",
        {"query": ROW, "noise_variance": 1e-30, "budget": 20, "rescore": ["infoloss"]},
        422,
        "noise_too_small",
        "/noise_variance",
        '"ge": ',
    ),
    "relative noise below rounding": (
        "own",
        {"query": ROW, "relative_noise": 1e-30, "budget": 20, "rescore": ["infoloss"]},
        422,
        "noise_too_small",
        "/relative_noise",
        '"ge": ',
    ),
    "budget 0": ("own", {"query": ROW, "budget": 0}, 422, "out_of_range", "/budget", "ge"),
    "budget above the pool": ("own", {"query": ROW, "budget": 21}, 422, "budget_too_large", "/budget", "20"),
    "budget above the limit": ("own", {"query": ROW, "budget": 51}, 422, "limit_exceeded", "/budget", "50"),
    "half a budget": ("own", {"query": ROW, "budget": 2.5}, 422, "not_an_integer", "/budget", "whole"),
    "false as budget": ("own", {"query": ROW, "budget": False}, 422, "not_a_number", "/budget", "number"),
    "false as noise": (
        "own",
        {"query": ROW, "noise_variance": False},
        422,
        "not_a_number",
        "/noise_variance",
        "number",
    ),
    "false as row": ("own", {"query": ROW | {"row": False}}, 422, "not_a_number", "/query/row", "number"),
    "false in a sketch": (
        "own",
        {"query": sketch(values=[False] * DIM)},
        422,
        "not_a_number",
        "/query/values/0",
        "number",
    ),
    "text as budget": ("own", {"query": ROW, "budget": "10"}, 422, "not_a_number", "/budget", "number"),
    "number as flag": ("own", {"query": ROW, "clip_budget": 1}, 422, "invalid_value", "/clip_budget", "true"),
    "unknown index": ("nothing", {"query": ROW}, 404, "unknown_index", None, "margin"),
    "unknown row": ("own", {"query": ROW | {"row": 10**6}}, 422, "unknown_row", "/query/row", str(QUERIES - 1)),
    "unknown training row": (
        "own",
        {"query": {"type": "row", "split": "train", "row": 60}},
        422,
        "unknown_row",
        "/query/row",
        "59",
    ),
    "negative row": ("own", {"query": ROW | {"row": -1}}, 422, "out_of_range", "/query/row", "ge"),
    "unknown id": (
        "own",
        {"query": {"type": "train_id", "id": "train:99"}},
        422,
        "unknown_id",
        "/query/id",
        "train:59",
    ),
    "unknown excluded id": (
        "own",
        {"query": ROW, "filter": {"exclude_ids": ["train:1", "nobody"]}},
        422,
        "unknown_id",
        "/filter/exclude_ids/1",
        "train:59",
    ),
    "unknown filter label": (
        "margin",
        {"query": ROW, "filter": {"labels": [9]}},
        422,
        "unknown_label",
        "/filter/labels/0",
        "2",
    ),
    "unknown target label": (
        "class",
        {"query": ROW, "target": {"label": 9}},
        422,
        "unknown_label",
        "/target/label",
        "2",
    ),
    "no label at all": (
        "own",
        {"query": ROW, "target": {"label": "false"}},
        422,
        "invalid_value",
        "/target/label",
        "true",
    ),
    "unknown metadata": (
        "own",
        {"query": ROW, "filter": {"where": {"colour": 1}}},
        422,
        "unknown_metadata",
        "/filter/where/colour",
        "source",
    ),
    "a condition that is none": (
        "own",
        {"query": ROW, "filter": {"where": {"source": {"over": 1}}}},
        422,
        "invalid_value",
        "/filter/where/source",
        "an object with gt, gte, lt or lte",
    ),
    "bounds that are none": (
        "own",
        {"query": ROW, "filter": {"where": {"source": {}}}},
        422,
        "invalid_value",
        "/filter/where/source",
        "null",
    ),
    "bounds of another type": (
        "own",
        {"query": ROW, "filter": {"where": {"length": {"gte": "2"}}}},
        422,
        "unknown_metadata",
        "/filter/where/length",
        "length",
    ),
    "unknown method": ("own", {"query": ROW, "method": "ekfac"}, 422, "invalid_value", "/method", "infoloss"),
    "trak without margins": (
        "own",
        {"query": ROW, "method": "trak"},
        422,
        "method_unavailable",
        "/method",
        "relatif",
    ),
    "repsim without features": (
        "own",
        {"query": ROW, "method": "repsim"},
        422,
        "method_unavailable",
        "/method",
        "relatif",
    ),
    "repsim of a sketch": (
        "margin",
        {"query": {"type": "sketch", "values": [1.0] * DIM, "label": 0}, "method": "repsim"},
        422,
        "no_representation",
        "/query",
        "example",
    ),
    "unknown field": ("own", {"query": ROW, "bugdet": 3}, 422, "unknown_field", "/bugdet", "budget"),
    "unknown field inside": ("own", {"query": ROW | {"rows": 3}}, 422, "unknown_field", "/query/rows", "row"),
    "unknown query type": ("own", {"query": {"type": "picture"}}, 422, "invalid_value", "/query/type", "sketch"),
    "no query type": ("own", {"query": {"row": 1}}, 422, "missing_field", "/query/type", "train_id"),
    "no query": ("own", {"budget": 3}, 422, "missing_field", "/query", None),
    "both noises": (
        "own",
        {"query": ROW, "noise_variance": 1.0, "relative_noise": 1.0},
        422,
        "noise_conflict",
        "/relative_noise",
        "noise_variance",
    ),
    "example without a recipe": (
        "own",
        {"query": {"type": "example", "content": {}}},
        422,
        "example_unsupported",
        "/query/type",
        "train_id",
    ),
    "own-label index asked across labels": (
        "own",
        {"query": ROW, "filter": {"labels": [0, 2]}},
        422,
        "label_mismatch",
        "/filter/labels/0",
        "1",
    ),
    "own-label index asked for a target that was not sketched": (
        "own",
        {"query": ROW, "target": {"label": 0}},
        422,
        "target_not_stored",
        "/target/label",
        "1",
    ),
    "no row passes the filter": (
        "own",
        {"query": ROW, "filter": {"where": {"source": "nowhere"}}},
        422,
        "empty_pool",
        "/filter",
        None,
    ),
    "too many ids": (
        "own",
        {"query": ROW, "filter": {"ids": [f"train:{row}" for row in range(41)]}},
        422,
        "limit_exceeded",
        "/filter/ids",
        "40",
    ),
    "a body that is a list": ("own", [], 422, "not_an_object", "", "object"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_bad_input_is_refused_by_name(http: httpx.AsyncClient, name: str) -> None:
    index, body, status, code, pointer, allowed = REFUSALS[name]
    response = await http.post(
        f"/v1/indexes/{index}/attributions", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    problem = check_problem(response, status, code)
    item = problem["errors"][0]
    assert item.get("pointer") == pointer
    if allowed is not None:
        assert allowed in json.dumps(item["allowed"])
    await check_alive(http)


MANY_MISTAKES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "what the schema finds": (
        "attributions",
        {"query": {"type": "row", "row": -1, "rwo": 2}, "bugdet": 3, "budget": 0, "method": "ekfac", "seed": True},
        ["/budget", "/bugdet", "/method", "/query/row", "/query/rwo", "/seed"],
    ),
    "what the index finds": (
        "attributions",
        {
            "query": ROW | {"row": 99},
            "noise_variance": 1.0,
            "relative_noise": 1.0,
            "filter": {"ids": ["train:1", "x", "y"], "labels": [7], "exclude_ids": ["z"], "where": {"colour": 1}},
        },
        [
            "/filter/exclude_ids/0",
            "/filter/ids/1",
            "/filter/ids/2",
            "/filter/labels/0",
            "/filter/where/colour",
            "/query/row",
            "/relative_noise",
        ],
    ),
    "a budget above the limit is no reason to hide the rest": (
        "attributions",
        {"query": ROW | {"row": 99}, "budget": 51, "filter": {"ids": ["x"]}},
        ["/budget", "/filter/ids/0", "/query/row"],
    ),
    "a budget above the pool, and two noises": (
        "attributions",
        {"query": ROW, "budget": 50, "noise_variance": 1.0, "relative_noise": 1.0},
        ["/budget", "/relative_noise"],
    ),
    "a set to score": (
        "scores",
        {"query": ROW | {"row": 99}, "ids": ["x", "train:1", "y"], "exclude_ids": ["z"]},
        ["/exclude_ids/0", "/ids/0", "/ids/2", "/query/row"],
    ),
    "lists beyond the limit": (
        "scores",
        {"query": ROW, "ids": ["x"] * 41, "exclude_ids": ["x"] * 41},
        ["/exclude_ids", "/ids"],
    ),
    "queries to sketch": (
        "sketches",
        {"queries": [ROW, ROW | {"row": 77}, sketch(values=[0.0] * DIM)]},
        ["/queries/1/row", "/queries/2/values"],
    ),
}


@pytest.mark.parametrize("name", MANY_MISTAKES)
async def test_several_mistakes_are_told_at_once(http: httpx.AsyncClient, name: str) -> None:
    resource, body, pointers = MANY_MISTAKES[name]
    response = await http.post(f"/v1/indexes/own/{resource}", json=body)
    problem = response.json()
    assert response.status_code == 422
    assert sorted(item["pointer"] for item in problem["errors"]) == pointers, problem
    assert problem["code"] == (
        "invalid_request" if len({item["code"] for item in problem["errors"]}) > 1 else problem["errors"][0]["code"]
    )
    await check_alive(http)


async def test_a_body_of_nothing_but_mistakes_gets_a_short_answer(http: httpx.AsyncClient) -> None:
    for body in ({"query": sketch(values=[False] * 500)}, {f"field {number}": 1 for number in range(500)}):
        response = await http.post("/v1/indexes/own/attributions", json=body)
        assert response.status_code == 422
        assert len(response.json()["errors"]) <= 100


@pytest.mark.parametrize("field", ["noise_variance", "relative_noise"])
async def test_the_noise_that_a_refusal_allows_is_taken(http: httpx.AsyncClient, field: str) -> None:
    for method in ("infogain_approx", "infogain"):
        body = {"query": ROW, "method": method, "budget": 20, "rescore": ["infoloss"]}  # more rows than dimensions
        refused = await http.post("/v1/indexes/own/attributions", json=body | {field: 1e-30})
        item = check_problem(refused, 422, "noise_too_small")["errors"][0]
        assert item["pointer"] == f"/{field}"
        taken = await http.post("/v1/indexes/own/attributions", json=body | {field: item["allowed"]["ge"]})
        assert taken.status_code == 200, taken.text


async def test_a_set_to_score_is_checked_too(http: httpx.AsyncClient) -> None:
    for ids, code, pointer in [
        ([], "wrong_length", "/ids"),
        (["nobody"], "unknown_id", "/ids/0"),
        (["x"] * 41, "limit_exceeded", "/ids"),
    ]:
        response = await http.post("/v1/indexes/own/scores", json={"query": ROW, "ids": ids})
        problem = check_problem(response, 422, code)
        assert problem["errors"][0]["pointer"] == pointer


async def test_a_bad_query_among_several_to_sketch_is_named(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/indexes/own/sketches", json={"queries": [ROW, ROW | {"row": 77}]})
    problem = check_problem(response, 422, "unknown_row")
    assert problem["errors"][0]["pointer"] == "/queries/1/row"
    response = await http.post("/v1/indexes/own/sketches", json={"queries": [ROW, ROW | {"row": True}]})
    problem = check_problem(response, 422, "not_a_number")
    assert problem["errors"][0]["pointer"] == "/queries/1/row"
