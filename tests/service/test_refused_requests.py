"""Requests that are refused before what they ask is read: broken bodies, media types, lengths, paths, parameters."""

import json

import httpx
import pytest

from tests.service.problems import ROW, check_alive, check_problem

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "body", [b"{", b"", b'"\xff"', b"\xff\xfe{}", b'{"query": NaN,}', b"[" * 100_000, b'{"budget": 1' + b"0" * 5000]
)
async def test_broken_json_is_refused(http: httpx.AsyncClient, body: bytes) -> None:
    response = await http.post(
        "/v1/indexes/own/attributions", content=body, headers={"Content-Type": "application/json"}
    )
    problem = check_problem(response, *((422, "missing_field") if not body else (400, "invalid_json")))
    (item,) = problem["errors"]
    assert item["pointer"] == ""
    assert "allowed" in item or not body
    await check_alive(http)


async def test_a_lone_surrogate_can_be_quoted_back(http: httpx.AsyncClient) -> None:
    body = b'{"query": {"type": "train_id", "id": "\\ud800"}, "\\udfff": 1}'
    response = await http.post(
        "/v1/indexes/own/attributions", content=body, headers={"Content-Type": "application/json"}
    )
    problem = check_problem(response, 422, "invalid_request")
    assert [item["code"] for item in problem["errors"]] == ["unknown_field", "invalid_value"]
    response = await http.post(
        "/v1/indexes/own/attributions",
        content=b'{"query": {"type": "train_id", "id": "\\ud800"}}',
        headers={"Content-Type": "application/json"},
    )
    problem = check_problem(response, 422, "invalid_value")
    assert problem["errors"][0]["pointer"] == "/query/id"
    await check_alive(http)


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_body_that_is_not_said_to_be_json_is_refused(http: httpx.AsyncClient, media_type: str) -> None:
    response = await http.post(
        "/v1/indexes/own/attributions", content=json.dumps({"query": ROW}), headers={"Content-Type": media_type}
    )
    check_problem(response, 415, "unsupported_media_type")


async def test_a_body_that_says_it_is_too_long_is_refused_unread(http: httpx.AsyncClient) -> None:
    sent = 0

    async def chunks():
        nonlocal sent
        for _ in range(100):
            sent += 2**20
            yield b" " * 2**20

    response = await http.post(
        "/v1/indexes/own/attributions",
        content=chunks(),
        headers={"Content-Type": "application/json", "Content-Length": str(100 * 2**20)},
    )
    problem = check_problem(response, 413, "body_too_large")
    assert problem["errors"][0]["allowed"] == {"max_body_bytes": 16 * 2**20}
    assert sent == 0
    await check_alive(http)


async def test_a_body_that_turns_out_too_long_is_refused_at_the_limit(http: httpx.AsyncClient) -> None:
    sent = 0

    async def chunks():
        nonlocal sent
        for _ in range(100):
            sent += 2**20
            yield b" " * 2**20

    response = await http.post(
        "/v1/indexes/own/attributions", content=chunks(), headers={"Content-Type": "application/json"}
    )
    check_problem(response, 413, "body_too_large")
    assert sent <= 18 * 2**20
    await check_alive(http)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/indexes/own/nothing", "/v1/indexes/own/", "/docs/assets/nothing.js"])
async def test_an_unknown_path_is_a_problem(http: httpx.AsyncClient, path: str) -> None:
    check_problem(await http.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/indexes/own/attributions"), ("POST", "/v1/info"), ("DELETE", "/livez")]
)
async def test_a_wrong_method_is_a_problem_that_names_the_right_one(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    response = await http.request(method, path)
    check_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"]


@pytest.mark.parametrize(
    ("path", "status", "code", "parameter"),
    [
        ("/v1/indexes/nothing", 404, "unknown_index", "index"),
        ("/v1/indexes/nothing/examples", 404, "unknown_index", "index"),
        ("/v1/indexes/own/examples/60", 404, "unknown_row", "row"),
        ("/v1/indexes/own/examples/x", 422, "not_an_integer", "row"),
        ("/v1/indexes/own/examples/-1", 422, "out_of_range", "row"),
        ("/v1/indexes/own/examples?split=test", 422, "invalid_value", "split"),
        ("/v1/indexes/own/examples?limit=0", 422, "out_of_range", "limit"),
        ("/v1/indexes/own/examples?limit=51", 422, "limit_exceeded", "limit"),
        ("/v1/indexes/own/examples?limit=1e3", 422, "not_an_integer", "limit"),
        ("/v1/indexes/own/examples?limit=abc", 422, "not_an_integer", "limit"),
        ("/v1/indexes/own/examples?page=2", 422, "unknown_field", "page"),
        ("/v1/indexes/own/examples/1?page=2", 422, "unknown_field", "page"),
        ("/v1/indexes/own/examples/1/content?size=2", 422, "unknown_field", "size"),
        ("/v1/indexes/own?verbose=1", 422, "unknown_field", "verbose"),
        ("/v1/indexes?verbose=1", 422, "unknown_field", "verbose"),
        ("/v1/info?verbose=1", 422, "unknown_field", "verbose"),
        ("/livez?verbose=1", 422, "unknown_field", "verbose"),
        ("/metrics?name=x", 422, "unknown_field", "name"),
        ("/openapi.json?version=3", 422, "unknown_field", "version"),
    ],
)
async def test_bad_parameters_are_refused_by_name(
    http: httpx.AsyncClient, path: str, status: int, code: str, parameter: str
) -> None:
    problem = check_problem(await http.get(path), status, code)
    assert problem["errors"][0]["parameter"] == parameter
    assert "allowed" in problem["errors"][0]


async def test_an_unknown_parameter_is_refused_beside_what_else_is_wrong(http: httpx.AsyncClient) -> None:
    problem = check_problem(await http.get("/v1/indexes/own/examples?limti=5&offset=-1"), 422, "invalid_request")
    assert [(item["code"], item["parameter"], item["allowed"]) for item in problem["errors"]] == [
        ("unknown_field", "limti", ["id", "limit", "offset", "split"]),
        ("out_of_range", "offset", {"ge": 0}),
    ]
    assert "did you mean limit?" in problem["errors"][0]["detail"]
    response = await http.post("/v1/indexes/own/attributions?budget=3", json={"query": ROW})
    check_problem(response, 422, "unknown_field")
