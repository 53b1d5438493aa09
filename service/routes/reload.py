"""POST /v1/indexes/{index}/reload: serve what the index's directory holds now."""

from anyio import to_thread
from fastapi import APIRouter

from service.authentication import Admin
from service.documentation import reload_examples
from service.parameters import IndexName, WithoutParameters
from service.schemas.revisions import Reloaded, ReloadRequest
from service.state import JsonBody, Service

router = APIRouter(tags=["indexes"], dependencies=[Admin, JsonBody, WithoutParameters])


@router.post(
    "/v1/indexes/{index}/reload",
    response_model=Reloaded,
    summary="Serve the revision that the index's directory holds now",
    openapi_extra=reload_examples(),
)
async def reload(index: IndexName, asked: ReloadRequest, service: Service) -> Reloaded:
    """Opens it beside the one that is served and reads what is new in it; then requests that come get the new one.

    Requests in flight end with the revision that they began with. Where nothing was published, nothing happens. A
    revision that is damaged or cannot be opened is refused with 409 by the file's name, and the old one goes on.
    """
    return await to_thread.run_sync(lambda: service.engine.reload(asked, index))
