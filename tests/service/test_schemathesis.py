"""Requests generated from the OpenAPI document, right and wrong ones, find no failure in the service."""

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given

from service.app import bare_app, create_app
from service.engine import Engine
from service.settings import Settings

EXAMPLES = 30
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


def operations() -> list[tuple[str, str, schemathesis.GenerationMode]]:
    """Every operation with requests that fit, and with requests that do not where it takes anything to get wrong."""
    found = []
    for path, methods in bare_app(Settings()).openapi()["paths"].items():
        for method, operation in methods.items():
            takes = [item for item in operation.get("parameters", ()) if item["name"] != "index"]
            modes = [POSITIVE, NEGATIVE] if takes or "requestBody" in operation else [POSITIVE]
            found += [(method.upper(), path, mode) for mode in modes]
    return found


@pytest.fixture(scope="module")
def described(settings: Settings, engine: Engine) -> schemathesis.BaseSchema:
    config = schemathesis.Config.from_path("schemathesis.toml")
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(settings, engine), config=config)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path", "mode"), operations())
def test_no_generated_request_breaks_the_contract(
    described: schemathesis.BaseSchema, method: str, path: str, mode: schemathesis.GenerationMode
) -> None:
    operation = described[path][method]

    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        if "index" in (case.path_parameters or {}):
            # Names are invented at random; most requests should reach beyond "unknown index".
            case.path_parameters["index"] = "own"
        case.call_and_validate()

    check()
