"""POST /v1/indexes/{index}/sketches: queries to sketches, for use elsewhere or again."""

from fastapi import APIRouter, Request

from service.documentation import sketches_examples
from service.parameters import IndexName, WithoutParameters
from service.presence import answer
from service.schemas.answers import SketchesResponse
from service.schemas.questions import SketchesRequest
from service.state import JsonBody, Service

router = APIRouter(tags=["attributions"], dependencies=[JsonBody, WithoutParameters])


@router.post(
    "/v1/indexes/{index}/sketches",
    response_model=SketchesResponse,
    summary="Sketches of queries",
    openapi_extra=sketches_examples(),
)
async def sketch(index: IndexName, asked: SketchesRequest, request: Request, service: Service) -> SketchesResponse:
    """Each query's sketch in measurement units, to send back as a query of type sketch."""
    return await answer(service, request, lambda deadline: service.sketch(index, asked, deadline))
