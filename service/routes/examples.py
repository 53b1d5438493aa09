"""GET /v1/indexes/{index}/examples: the stored examples, their metadata and previews."""

from fastapi import APIRouter, Response

from service import stored_examples
from service.parameters import IndexName, PageOf, RowNumber, SplitOf
from service.schemas.cards import Example, ExamplePage
from service.state import Service

router = APIRouter(tags=["examples"])


@router.get("/v1/indexes/{index}/examples", response_model=ExamplePage, summary="A page of examples")
async def list_examples(index: IndexName, asked: PageOf, service: Service) -> ExamplePage:
    """Consecutive rows of a split, or those with some ids; a page beyond the end is empty."""
    service.check_length("limit", asked.limit, "max_page", parameter=True)
    service.check_length("id", len(asked.id), "max_page", parameter=True)
    return await service.workplace.run(
        lambda: service.engine.ask(
            index,
            lambda served: stored_examples.page(
                served.index, asked.split, asked.offset, asked.limit, asked.id, previews=service.shows_previews
            ),
        ),
        service.deadline(),
    )


@router.get("/v1/indexes/{index}/examples/{row}", response_model=Example, summary="One example")
async def read_example(index: IndexName, row: RowNumber, asked: SplitOf, service: Service) -> Example:
    """Its id, label, metadata, and the media type of its stored content."""
    return await service.workplace.run(
        lambda: service.engine.ask(
            index,
            lambda served: stored_examples.single(served.index, asked.split, row, previews=service.shows_previews),
        ),
        service.deadline(),
    )


@router.get(
    "/v1/indexes/{index}/examples/{row}/content",
    response_class=Response,
    summary="The stored preview of an example",
    responses={
        200: {
            "description": "The preview: an image, text, or JSON.",
            "content": {
                "image/png": {"schema": {"type": "string", "format": "binary"}},
                "text/plain": {"schema": {"type": "string"}},
                "application/json": {"schema": {}},
            },
        }
    },
)
async def read_content(index: IndexName, row: RowNumber, asked: SplitOf, service: Service) -> Response:
    """A PNG image, text, or JSON, each as just that; 404 where the index, or the service, is without previews."""
    media_type, content = await service.workplace.run(
        lambda: service.engine.ask(
            index,
            lambda served: stored_examples.content(served.index, asked.split, row, previews=service.shows_previews),
        ),
        service.deadline(),
    )
    service.metrics.previews.labels(index, media_type.partition("/")[0]).inc()
    return Response(content, media_type=media_type, headers={"X-Content-Type-Options": "nosniff"})
