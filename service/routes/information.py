"""POST /v1/indexes/{index}/information: what groups of training examples tell, and what their withdrawal costs."""

from fastapi import APIRouter, Request

from service.documentation import information_examples
from service.parameters import IndexName, WithoutParameters
from service.presence import answer
from service.schemas.groups import InformationRequest, InformationResponse
from service.state import JsonBody, Service

router = APIRouter(tags=["attributions"], dependencies=[JsonBody, WithoutParameters])


@router.post(
    "/v1/indexes/{index}/information",
    response_model=InformationResponse,
    summary="Nats of groups of training examples",
    openapi_extra=information_examples(),
)
async def inform(
    index: IndexName, asked: InformationRequest, request: Request, service: Service
) -> InformationResponse:
    """InfoGain and InfoLoss of each group, for one query or the mean over several, and the order of removal.

    Groups are given by ids or by a metadata column: what would this prediction lose if contributor X were withdrawn?
    """
    return await answer(service, request, lambda deadline: service.inform(index, asked, deadline))
