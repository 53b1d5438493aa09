"""The OpenAPI document: complete, with valid examples, its snapshot in docs/, and /docs shown from local files."""

import json
import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from service import __version__
from service.app import bare_app
from service.documentation import downgraded
from service.schemas.groups import InformationRequest
from service.schemas.jobs import JobRequest
from service.schemas.questions import AttributionRequest, BatchRequest, ScoresRequest, SketchesRequest
from service.schemas.revisions import ReloadRequest
from service.settings import Settings

SNAPSHOT = Path("docs/openapi.json")
METHODS = ("get", "post", "delete")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return bare_app(Settings()).openapi()


def test_the_snapshot_is_fresh(document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if os.environ.get("NATTRIBUTE_WRITE_SNAPSHOTS"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert SNAPSHOT.read_text(encoding="utf-8") == text, (
        "docs/openapi.json is stale: run NATTRIBUTE_WRITE_SNAPSHOTS=1 pytest tests/service/test_openapi.py"
    )


def test_the_version_is_that_of_the_distribution() -> None:
    (version,) = re.findall(r'^version = "(.*)"$', Path("pyproject.toml").read_text(), re.MULTILINE)
    assert version == __version__


def test_every_error_is_a_problem(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method in METHODS:
            for status, response in operations.get(method, {}).get("responses", {}).items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], (path, method, status)
    assert "HTTPValidationError" not in json.dumps(document)


def test_every_operation_and_parameter_is_described(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["description"], path
            for parameter in operation.get("parameters", ()):
                assert parameter["description"], (path, parameter["name"])


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/v1/indexes/{index}/attributions", AttributionRequest),
        ("/v1/indexes/{index}/attributions/batch", BatchRequest),
        ("/v1/indexes/{index}/scores", ScoresRequest),
        ("/v1/indexes/{index}/information", InformationRequest),
        ("/v1/indexes/{index}/sketches", SketchesRequest),
        ("/v1/indexes/{index}/reload", ReloadRequest),
        ("/v1/jobs", JobRequest),
    ],
)
def test_every_request_has_valid_examples(document: dict[str, Any], path: str, schema: Any) -> None:
    examples = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert examples
    for example in examples.values():
        TypeAdapter(schema).validate_python(example["value"])


@pytest.mark.anyio
async def test_every_documented_request_is_answered(document: dict[str, Any], http: httpx.AsyncClient) -> None:
    for path, operations in document["paths"].items():
        if "post" in operations:
            examples = operations["post"]["requestBody"]["content"]["application/json"]["examples"]
            for name, example in examples.items():
                sent = example["value"] | ({"index": "own"} if path == "/v1/jobs" else {})
                response = await http.post(path.replace("{index}", "own"), json=sent)
                wanted = 202 if path == "/v1/jobs" else 200
                assert response.status_code == wanted, (path, name, response.text)


def test_the_page_s_document_has_no_word_of_3_1(document: dict[str, Any]) -> None:
    def check(node: Any) -> None:
        if isinstance(node, dict):
            assert node.get("type") != "null"
            assert node.get("exclusiveMinimum", True) is True
            assert "const" not in node
            for value in node.values():
                check(value)
        elif isinstance(node, list):
            for value in node:
                check(value)

    older = downgraded(document)
    assert older["openapi"] == "3.0.3"
    assert set(older["paths"]) == set(document["paths"])
    check(older["components"])
    check(older["paths"])


@pytest.mark.anyio
async def test_the_page_fetches_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    page = await http.get("/docs")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 4
    for link in links:
        assert "//" not in link
        assert (await http.get(f"/{link}")).status_code == 200, link
    assert (await http.get("/openapi.json")).json()["openapi"].startswith("3.1")
    assert (await http.get("/docs/openapi-3.0.json")).json()["openapi"] == "3.0.3"
