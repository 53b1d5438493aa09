"""/livez, /readyz and /metrics: what runs the service asks."""

from anyio import to_thread
from fastapi import APIRouter, Response

from service.authentication import AllIndexes
from service.errors import NotReadyError
from service.parameters import WithoutParameters
from service.schemas.cards import Health
from service.state import Service

router = APIRouter(tags=["operations"], dependencies=[WithoutParameters])


@router.get("/livez", response_model=Health, summary="The process runs")
async def live() -> Health:
    """Answers as long as the event loop turns."""
    return Health(status="alive")


@router.get("/readyz", response_model=Health, summary="The indexes are open")
async def ready(service: Service) -> Health:
    """200 once every index is open: its manifest, norms and labels checked, all files with --check start; else 503."""
    if not service.ready:
        raise NotReadyError("the service is starting or stopping")
    return Health(status="ready")


@router.get(
    "/metrics",
    response_class=Response,
    summary="Prometheus metrics",
    dependencies=[AllIndexes],
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(service: Service) -> Response:
    """Requests, stages, scans, information, jobs, indexes and the process, in the Prometheus text format."""
    # In a thread: jobs are counted in their store, whose lock may wait for the disk.
    text = await to_thread.run_sync(service.metrics.text)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
