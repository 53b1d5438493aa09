"""POST /v1/indexes/{index}/attributions: one query, an ordered subset; as one answer, as a stream, or in a batch."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request

from service.documentation import attribution_examples, batch_examples
from service.event_stream import EventStream, open_stream, wants_stream
from service.parameters import IndexName, WithoutParameters
from service.presence import answer, while_present
from service.problems import problem_of
from service.schemas.answers import Answer, BatchResponse, BatchResult
from service.schemas.questions import AttributionRequest, BatchRequest
from service.state import JsonBody, Service
from service.workplace import ClientGoneError

router = APIRouter(tags=["attributions"], dependencies=[JsonBody, WithoutParameters])


@router.post(
    "/v1/indexes/{index}/attributions",
    response_model=Answer,
    summary="Which training examples inform this prediction, and by how much",
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    openapi_extra=attribution_examples(),
)
async def attribute(
    index: IndexName, asked: AttributionRequest, request: Request, service: Service
) -> Answer | EventStream:
    """One query, an ordered subset, each member with the nats it adds.

    With ``Accept: text/event-stream`` the same answer comes as events: ``start``, a ``step`` for every hit, ``done``
    (the answer without its hits), or ``problem``.
    """
    if wants_stream(request):
        return await open_stream(service, request, index, asked, service.deadline())
    return await answer(service, request, lambda deadline: service.attribute(index, asked, deadline))


@router.post(
    "/v1/indexes/{index}/attributions/batch",
    response_model=BatchResponse,
    summary="Several attributions, answered together",
    openapi_extra=batch_examples(),
)
async def attribute_batch(index: IndexName, batch: BatchRequest, request: Request, service: Service) -> BatchResponse:
    """Each request gets its own status and body, an answer or a problem; a bad one does not spoil the others."""
    service.engine.check_name(index)
    service.check_length("requests", len(batch.requests), "max_batch")
    deadline = service.deadline()

    def answer_one(item: Any) -> BatchResult:
        try:
            deadline.check()
            found = service.attribute(index, AttributionRequest.model_validate(item), deadline)
            return BatchResult(status=200, body=found.model_dump(mode="json"))
        except ClientGoneError:
            raise
        except Exception as error:
            problem = problem_of(error, request.scope["request_id"], body=item).problem
            service.metrics.refusals.labels(problem.code).inc()
            return BatchResult(status=problem.status, body=problem.model_dump(mode="json", exclude_none=True))

    works = [partial(answer_one, item) for item in batch.requests]
    results = await while_present(request, deadline, lambda: service.workplace.run_all(works, deadline))
    return BatchResponse(results=results)
