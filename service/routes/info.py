"""GET /v1/info: what this service is, what it allows, what its numbers mean."""

from fastapi import APIRouter

from service.authentication import CallerOf
from service.parameters import WithoutParameters
from service.schemas.cards import Info
from service.state import Service

router = APIRouter(tags=["indexes"], dependencies=[WithoutParameters])


@router.get("/v1/info", response_model=Info, summary="The service, its limits, and what nats mean")
async def info(service: Service, caller: CallerOf) -> Info:
    """Versions, limits, methods, and the statements every reader of an answer should know."""
    described = service.engine.info(service.settings.limits())
    return described.model_copy(update={"indexes": caller.visible(described.indexes)})
