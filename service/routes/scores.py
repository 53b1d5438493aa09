"""POST /v1/indexes/{index}/scores: exact nats of a set the client names."""

from fastapi import APIRouter, Request

from service.documentation import scores_examples
from service.parameters import IndexName, WithoutParameters
from service.presence import answer
from service.schemas.answers import ScoresResponse
from service.schemas.questions import ScoresRequest
from service.state import JsonBody, Service

router = APIRouter(tags=["attributions"], dependencies=[JsonBody, WithoutParameters])


@router.post(
    "/v1/indexes/{index}/scores",
    response_model=ScoresResponse,
    summary="Exact nats of a given set and of its members",
    openapi_extra=scores_examples(),
)
async def score(index: IndexName, asked: ScoresRequest, request: Request, service: Service) -> ScoresResponse:
    """InfoGain and InfoLoss of the whole set and of each member alone."""
    return await answer(service, request, lambda deadline: service.score(index, asked, deadline))
