"""Requests generated from the OpenAPI document, right and wrong ones, find no failure in the service."""

import time

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given

from service.app import bare_app, create_app
from service.engine import Engine
from service.schemas.jobs import CoresetJob
from service.settings import Settings
from tests.reliability.lengths import rounds

EXAMPLES = rounds(30, 500)  # of right and of wrong requests each
CHAINS = rounds(10, 500)
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


def operations() -> list[tuple[str, str, schemathesis.GenerationMode]]:
    """Every operation with requests that fit, and with requests that do not where it takes anything to get wrong."""
    found = []
    for path, methods in bare_app(Settings()).openapi()["paths"].items():
        for method, operation in methods.items():
            takes = [item for item in operation.get("parameters", ()) if item["name"] not in ("index", "job")]
            modes = [POSITIVE, NEGATIVE] if takes or "requestBody" in operation else [POSITIVE]
            found += [(method.upper(), path, mode) for mode in modes]
    return found


class Described:
    """The document of a service that does jobs, and one that is over."""

    def __init__(self, schema: schemathesis.BaseSchema, job: str) -> None:
        self.schema = schema
        self.job = job


@pytest.fixture(scope="module")
def described(settings: Settings, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Described:
    config = schemathesis.Config.from_path("schemathesis.toml")
    store = tmp_path_factory.mktemp("jobs") / "jobs.sqlite3"
    app = create_app(settings.model_copy(update={"job_store": store}), engine)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)  # starts what the app does besides
    jobs = app.state.service.jobs
    job = jobs.submit(CoresetJob(type="coreset", index="margin", budget=3), None)
    while jobs.store.get(job.id).finished is None:
        time.sleep(0.02)
    return Described(schema, job.id)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path", "mode"), operations())
def test_no_generated_request_breaks_the_contract(
    described: Described, method: str, path: str, mode: schemathesis.GenerationMode
) -> None:
    operation = described.schema[path][method]

    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        if "index" in (case.path_parameters or {}):
            # Names are invented at random; most requests should reach beyond "unknown index".
            case.path_parameters["index"] = "own"
        if "job" in (case.path_parameters or {}):
            case.path_parameters["job"] = described.job
        if path == "/v1/jobs" and method == "POST" and mode is POSITIVE:
            case.body["index"] = "margin"
        case.call_and_validate()

    check()


@pytest.mark.slow
def test_what_follows_a_job_s_links_keeps_the_contract(described: Described) -> None:
    followed: list[str] = []

    class Aimed(described.schema.as_state_machine()):  # type: ignore[misc]
        def before_call(self, case: schemathesis.Case) -> None:
            super().before_call(case)
            if case.operation.label == "POST /v1/jobs" and case.meta.generation.mode is POSITIVE:
                case.body["index"] = "margin"

        def after_call(self, response: schemathesis.Response, case: schemathesis.Case) -> None:
            super().after_call(response, case)
            if "/v1/jobs/{job}" in case.operation.label and response.status_code in (200, 204, 409):
                followed.append(case.operation.label)

    for chains in (CHAINS, 10 * CHAINS):  # which links there are depends on when a job is over
        Aimed.run(
            settings=hypothesis.settings(
                max_examples=chains, stateful_step_count=rounds(5, 8), deadline=None, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck),
            )
        )  # fmt: skip
        if followed:
            return
    pytest.fail("no link of an accepted job was followed")
