"""Every answer tells a browser to load nothing, frame nothing and guess no type; the page /docs has its own policy."""

import re

import httpx
import pytest

from service.app import bare_app
from service.documentation import CONTENT_POLICY
from service.settings import Settings

STRICT = "default-src 'none'; frame-ancestors 'none'"
OPERATIONS = [
    (method, path)
    for path, operations in bare_app(Settings()).openapi()["paths"].items()
    for method in operations
    if method in {"get", "post", "put", "patch", "delete"}
]
UNLISTED = ["/openapi.json", "/docs/openapi-3.0.json", "/docs/start.js", "/docs/assets/swagger-ui.css", "/no/such/path"]

pytestmark = pytest.mark.anyio


def check(response: httpx.Response, policy: str = STRICT) -> None:
    assert response.headers.get_list("content-security-policy") == [policy], response.request.url
    assert response.headers.get_list("x-content-type-options") == ["nosniff"], response.request.url


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_every_operation_answers_with_them(http: httpx.AsyncClient, method: str, path: str) -> None:
    check(await http.request(method.upper(), re.sub(r"\{\w+\}", "own", path)))


@pytest.mark.parametrize("path", UNLISTED)
async def test_so_do_documents_assets_and_paths_that_are_none(http: httpx.AsyncClient, path: str) -> None:
    check(await http.get(path))


async def test_the_documentation_page_keeps_its_own_policy(http: httpx.AsyncClient) -> None:
    check(await http.get("/docs"), CONTENT_POLICY)


async def test_the_walk_finds_the_operations() -> None:
    assert ("post", "/v1/indexes/{index}/attributions") in OPERATIONS
    assert ("get", "/livez") in OPERATIONS
