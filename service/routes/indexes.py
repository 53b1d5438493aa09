"""GET /v1/indexes: the index cards."""

from anyio import to_thread
from fastapi import APIRouter

from service.authentication import CallerOf
from service.parameters import IndexName, WithoutParameters
from service.schemas.cards import IndexCard, IndexList
from service.state import Service

router = APIRouter(tags=["indexes"], dependencies=[WithoutParameters])


@router.get("/v1/indexes", response_model=IndexList, summary="The cards of all indexes")
async def list_indexes(service: Service, caller: CallerOf) -> IndexList:
    """Every index of this service that the key is for, each with its card."""
    cards = [await to_thread.run_sync(service.engine.card, name) for name in caller.visible(service.engine.names)]
    return IndexList(indexes=cards)


@router.get("/v1/indexes/{index}", response_model=IndexCard, summary="The card of one index")
async def read_index(index: IndexName, service: Service) -> IndexCard:
    """What the index holds, which methods and queries it can answer, its measured distortion, its warnings."""
    return await to_thread.run_sync(service.engine.card, index)  # a new revision may have to be opened for it
