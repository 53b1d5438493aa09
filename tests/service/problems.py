"""What every refusal looks like, and that the service answers after it."""

from typing import Any

import httpx

ROW = {"type": "row", "split": "query", "row": 1}


def check_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code, problem
    assert problem["status"] == status
    assert problem["type"] == f"urn:nattribute:problem:{code}"
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["title"]
    assert problem["detail"]
    assert "Traceback" not in response.text
    return problem


async def check_alive(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/indexes/own/attributions", json={"query": ROW, "budget": 2})
    assert answer.status_code == 200, answer.text
