"""The OpenAPI document with its examples, and a page that shows it without fetching anything from elsewhere."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse, JSONResponse
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

from service.parameters import WithoutParameters
from service.problems import MEDIA_TYPE
from service.schemas.problem import Problem
from service.settings import Settings

TITLE = "nattribute"
DESCRIPTION = """Which training examples inform this prediction, and by how much, in nats?

POST a query to `/v1/indexes/{index}/attributions`; the answer is a short, diverse, ordered subset of the training set,
each member with the information it adds. Errors are RFC 9457 problems with a stable `code`."""

# What an operation can answer besides success, by what it takes.
ALWAYS = {
    "401": "No API key, or an unknown one.",
    "421": "For another host.",
    "500": "The service failed.",
    "503": "Not in time, or not ready.",
}
WITH_INDEX = {"404": "No such index, or no such row.", "422": "A parameter or the body asks for something impossible."}
WITH_WORK = {"429": "Too many requests wait; see Retry-After."}
# What a key that is known may still not do.
FORBIDDING = {
    "/metrics": "The key is limited to some indexes.",
    "/v1/indexes/{index}/reload": "The key is no admin key.",
}
WITH_JOB = {"404": "No such job, or no such index.", "422": "A parameter or the body asks for something impossible."}
WITH_RELOAD = {"409": "The new revision cannot be served; the old one goes on."}
WITH_RESULT = {"406": "Accept names no form that there is.", "409": "The job is not over."}
WITH_BODY = {
    "400": "The body is not JSON.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "The body is not said to be JSON.",
}

RETRY_AFTER = {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer", "minimum": 1}}

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>nattribute: HTTP API</title>
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
<link rel="icon" type="image/png" href="docs/assets/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = """SwaggerUIBundle({
  url: "docs/openapi-3.0.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null,
});
"""
# The page may run its own scripts and talk to this service, nothing else.
CONTENT_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)


def request_examples(examples: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Attach named examples to an operation's request body.

    Args:
        examples: Summary and body by name.

    Returns:
        What FastAPI merges into the operation.
    """
    named = {name: {"summary": summary, "value": value} for name, (summary, value) in examples.items()}
    return {"requestBody": {"content": {"application/json": {"examples": named}}}}


def attribution_examples() -> dict[str, Any]:
    """Return requests that the digits index answers."""
    return request_examples(
        {
            "row": (
                "A stored query, ten examples",
                {"query": {"type": "row", "split": "query", "row": 12}, "budget": 10, "relative_noise": 1.0},
            ),
            "train_id": (
                "What else in the training set informs the prediction for this training example",
                {"query": {"type": "train_id", "id": "train:17"}, "method": "infoloss", "budget": 5},
            ),
            "everything": (
                "Filters, exact rescoring, early stop",
                {
                    "query": {"type": "row", "split": "query", "row": 12},
                    "target": {"label": "predicted"},
                    "method": "infogain",
                    "budget": 10,
                    "relative_noise": 1.0,
                    "filter": {"exclude_ids": ["train:17"]},
                    "condition": "comparable",
                    "strategy": "certified",
                    "rescore": ["infogain", "infoloss"],
                    "information_fraction": 0.9,
                },
            ),
        }
    )


def batch_examples() -> dict[str, Any]:
    """Return a batch whose second request is refused while the first is answered."""
    return request_examples(
        {
            "two": (
                "Two requests; the second asks for nothing and gets a problem of its own",
                {
                    "requests": [
                        {"query": {"type": "row", "split": "query", "row": 12}, "budget": 3, "relative_noise": 1.0},
                        {"query": {"type": "row", "split": "query", "row": 13}, "budget": 0},
                    ]
                },
            )
        }
    )


def scores_examples() -> dict[str, Any]:
    """Return a set to rescore."""
    return request_examples(
        {
            "itself": (
                "What the training example tells about its own prediction",
                {
                    "query": {"type": "train_id", "id": "train:17", "include_self": True},
                    "relative_noise": 1.0,
                    "ids": ["train:17"],
                    "criteria": ["infogain", "infoloss"],
                },
            )
        }
    )


def information_examples() -> dict[str, Any]:
    """Return questions about groups."""
    return request_examples(
        {
            "labels": (
                "What the examples of each label tell a prediction, and what it would lose without them",
                {"query": {"type": "row", "split": "query", "row": 12}, "groups": {"by": "label"}, "relative_noise": 1},
            ),
            "withdrawal": (
                "Two contributors' examples and the mean over two predictions; which withdrawal costs more",
                {
                    "queries": [
                        {"type": "row", "split": "query", "row": 12},
                        {"type": "row", "split": "query", "row": 13},
                    ],
                    "groups": {"first": ["train:17", "train:18"], "second": ["train:19"]},
                    "relative_noise": 1,
                    "removal_order": 2,
                },
            ),
        }
    )


def sketches_examples() -> dict[str, Any]:
    """Return queries to sketch."""
    return request_examples(
        {
            "rows": (
                "A stored query and a training example",
                {"queries": [{"type": "row", "split": "query", "row": 12}, {"type": "train_id", "id": "train:17"}]},
            )
        }
    )


def reload_examples() -> dict[str, Any]:
    """Return the two ways to reload."""
    return request_examples(
        {
            "new": ("Serve what was published", {}),
            "all": ("Also read the files that the new revision shares with the old one", {"files": "all"}),
        }
    )


def job_examples() -> dict[str, Any]:
    """Return one job of each type."""
    row = {"type": "row", "split": "query", "row": 12}
    return request_examples(
        {
            "attributions": (
                "Two attributions of up to 10,000",
                {
                    "type": "attributions",
                    "index": "digits",
                    "requests": [
                        {"query": row, "budget": 3, "relative_noise": 1.0},
                        {"query": {"type": "row", "split": "query", "row": 13}, "budget": 3, "relative_noise": 1.0},
                    ],
                },
            ),
            "coreset": (
                "Twenty rows that together inform the stored queries of one class",
                {"type": "coreset", "index": "digits", "budget": 20, "label": 1, "relative_noise": 1.0},
            ),
            "evaluation": (
                "What two subsets tell each of some queries",
                {
                    "type": "evaluation",
                    "index": "digits",
                    "queries": [row],
                    "groups": {"first": ["train:17", "train:18"], "second": ["train:19"]},
                    "relative_noise": 1.0,
                },
            ),
        }
    )


def openapi_document(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """Describe the app: FastAPI's document, with our problems in place of its validation errors, and with the limits.

    Args:
        app: The app.
        settings: Where the limits are.

    Returns:
        An OpenAPI 3.1 document, made once.
    """
    if app.openapi_schema is None:
        document = get_openapi(title=TITLE, version=app.version, description=DESCRIPTION, routes=app.routes)
        schemas = document["components"]["schemas"]
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(problem.pop("$defs"))
        schemas["Problem"] = problem
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                _describe_problems(path, method, operation)
        _state_limits(document, settings)
        # Each branch's const says the same; schemathesis cannot generate arrays whose items carry the keyword.
        schemas["SketchesRequest"]["properties"]["queries"]["items"].pop("discriminator")
        schemas["EvaluationJob"]["properties"]["queries"]["items"].pop("discriminator")
        for option in schemas["InformationRequest"]["properties"]["queries"]["anyOf"]:
            option.get("items", {}).pop("discriminator", None)
        document["components"]["securitySchemes"] = {
            "apiKey": {"type": "http", "scheme": "bearer", "description": "Only where the service has API keys."}
        }
        app.openapi_schema = document
    return app.openapi_schema


def _state_limits(document: dict[str, Any], settings: Settings) -> None:
    schemas = document["components"]["schemas"]
    schemas["AttributionRequest"]["properties"]["budget"]["maximum"] = settings.max_budget
    for schema, field, most in (
        ("BatchRequest", "requests", settings.max_batch),
        ("SketchesRequest", "queries", settings.max_batch),
        ("ScoresRequest", "ids", settings.max_ids),
        ("ScoresRequest", "exclude_ids", settings.max_ids),
        ("InformationRequest", "queries", settings.max_queries),
        ("InformationRequest", "exclude_ids", settings.max_ids),
        ("AttributionsJob", "requests", settings.max_job_requests),
        ("EvaluationJob", "queries", settings.max_job_requests),
        ("EvaluationJob", "exclude_ids", settings.max_ids),
        ("CandidateFilter", "ids", settings.max_ids),
        ("CandidateFilter", "exclude_ids", settings.max_ids),
    ):
        described = schemas[schema]["properties"][field]
        described.get("anyOf", [described])[0]["maxItems"] = most
    for path in ("/v1/indexes/{index}/examples", "/v1/jobs"):
        for parameter in document["paths"][path]["get"]["parameters"]:
            if parameter["name"] == "limit":
                parameter["schema"]["maximum"] = settings.max_page


def _describe_problems(path: str, method: str, operation: dict[str, Any]) -> None:
    if path in ("/livez", "/readyz"):
        statuses = {"503": "Not ready."} if path == "/readyz" else {}
    else:
        statuses = dict(ALWAYS)
        operation["security"] = [{}, {"apiKey": []}]
    if "{index}" in path:
        statuses |= WITH_INDEX
        if path.endswith("/reload"):
            statuses |= WITH_RELOAD
        elif path != "/v1/indexes/{index}":
            statuses |= WITH_WORK
    if path.startswith("/v1/jobs"):
        statuses |= WITH_JOB
        if path == "/v1/jobs":
            statuses |= WITH_WORK
        elif path.endswith("/result"):
            statuses |= WITH_RESULT
    if method == "post":
        statuses |= WITH_BODY
    if path in FORBIDDING:
        statuses["403"] = FORBIDDING[path]
    operation["responses"].pop("422", None)
    for status, description in sorted(statuses.items()):
        operation["responses"][status] = {
            "description": description,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        if status in ("429", "503"):
            operation["responses"][status]["headers"] = {"Retry-After": RETRY_AFTER}


def downgraded(document: dict[str, Any]) -> dict[str, Any]:
    """Say an OpenAPI 3.1 document in the words of 3.0, which is what the bundled page can show.

    Args:
        document: An OpenAPI 3.1 document.

    Returns:
        The same operations with 3.0's nullable, exclusive bounds and single examples.
    """

    def convert(node: Any) -> Any:
        if isinstance(node, list):
            return [convert(item) for item in node]
        if not isinstance(node, dict):
            return node
        node = {key: convert(value) for key, value in node.items()}
        options = node.get("anyOf")
        if isinstance(options, list) and {"type": "null"} in options:
            rest = [option for option in options if option != {"type": "null"}]
            del node["anyOf"]
            node |= {"nullable": True} | (rest[0] if len(rest) == 1 and "$ref" not in rest[0] else {"anyOf": rest})
        if "const" in node:
            node["enum"] = [node.pop("const")]
        for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if isinstance(node.get(exclusive), int | float) and not isinstance(node[exclusive], bool):
                node[bound], node[exclusive] = node[exclusive], True
        if isinstance(node.get("examples"), list):
            node["example"] = node.pop("examples")[0]
        return node

    converted: dict[str, Any] = convert(copy.deepcopy(document))
    return {**converted, "openapi": "3.0.3"}


def install(app: FastAPI, settings: Settings) -> None:
    """Serve the document, and the page at /docs from files of the swagger-ui-bundle package.

    Args:
        app: The app, with all its routes.
        settings: Where the limits are that the document states.
    """
    app.openapi = partial(openapi_document, app, settings)  # type: ignore[method-assign]
    router = APIRouter(include_in_schema=False, dependencies=[WithoutParameters])

    @router.get("/openapi.json")
    async def document() -> JSONResponse:
        return JSONResponse(app.openapi())

    @router.get("/docs/openapi-3.0.json")
    async def document_for_page() -> JSONResponse:
        return JSONResponse(downgraded(app.openapi()))

    @router.get("/docs")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": CONTENT_POLICY})

    @router.get("/docs/start.js")
    async def start() -> HTMLResponse:
        return HTMLResponse(START, media_type="text/javascript")

    app.include_router(router)
    app.mount("/docs/assets", StaticFiles(directory=Path(str(swagger_ui_path))), name="docs-assets")
