"""What a request names — a stored row, a training example, a sketch, an example — becomes a query on an index."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from indexer.attributor import Attributor, QuerySketch
from indexer.attributor.errors import QuestionError
from indexer.recipe import RecipeError
from service.errors import ExampleUnsupportedError, InvalidExampleError, ServiceError, refuse
from service.example_sketcher import ExampleSketcher
from service.schemas.questions import ExampleQuery, Query, RowQuery, SketchQuery, Target
from sketchstore.errors import IncompatibleSketchError

Check = Callable[[], None]
SKETCH_TIMING = "sketch"
# What is the question's fault: it is told together with whatever else is wrong with it.
MISTAKES = (QuestionError, ExampleUnsupportedError, InvalidExampleError)


class QueryResolver:
    """Resolves the queries of requests about one index.

    Args:
        name: The name the index is served by.
        attributor: Answers questions on it.
        sketcher: Sketches examples; None where no recipe is loaded.
        no_recipe_reason: Why there is no sketcher.

    Attributes:
        on_sketch: Told how many seconds the sketch of an example took; None to tell nobody.
    """

    def __init__(
        self, name: str, attributor: Attributor, sketcher: ExampleSketcher | None, no_recipe_reason: str | None
    ) -> None:
        self._name = name
        self._attributor = attributor
        self._sketcher = sketcher
        self._no_recipe_reason = no_recipe_reason
        self.on_sketch: Callable[[float], None] | None = None

    def resolve_all(self, queries: Sequence[Query], target: Target | None, check: Check) -> list[QuerySketch]:
        """Turn what a request names into queries, or refuse it for all of them that are wrong.

        Args:
            queries: What it names under /queries.
            target: The class to explain.
            check: Called between queries; may raise to stop.

        Returns:
            The queries, in order.
        """
        resolved: list[QuerySketch] = []
        found: list[QuestionError | ServiceError] = []
        for position, query in enumerate(queries):
            check()
            try:
                resolved.append(self.resolve(query, target, f"/queries/{position}")[0])
            except MISTAKES as error:
                found.append(error)
        if found:
            refuse(found)
        return resolved

    def resolve(self, query: Query, target: Target | None, pointer: str) -> tuple[QuerySketch, dict[str, float]]:
        """Turn what a request names into a query.

        Args:
            query: What it names.
            target: The class to explain.
            pointer: Where it stands in the request.

        Returns:
            The query, and milliseconds by stage that this took.
        """  # noqa: DOC501 - passes on what the attributor refuses
        label = None if target is None else target.label
        timings: dict[str, float] = {}
        try:
            match query:
                case RowQuery(split="query"):
                    resolved = self._attributor.resolve_query_row(query.row, label)
                case RowQuery():
                    resolved = self._attributor.resolve_train_row(query.row, label, include_self=query.include_self)
                case SketchQuery():
                    values = torch.tensor(query.values, dtype=torch.float64)
                    resolved = self._attributor.resolve_sketch(values, query.label, label)
                case ExampleQuery():
                    resolved, timings = self._sketch_example(query, label, pointer)
                case _:
                    resolved = self._attributor.resolve_train_id(query.id, label, include_self=query.include_self)
        except QuestionError as error:
            if error.pointer is not None and error.pointer.startswith("/query/"):
                error.pointer = pointer + error.pointer.removeprefix("/query")
            raise
        return resolved, timings

    def _sketch_example(self, query: ExampleQuery, label: Any, pointer: str) -> tuple[QuerySketch, dict[str, float]]:
        if self._sketcher is None:
            raise ExampleUnsupportedError(
                f"index {self._name!r} takes no queries by example: {self._no_recipe_reason}",
                pointer=f"{pointer}/type",
                allowed=["row", "train_id", "sketch"],
            )
        try:
            self._sketcher.load()
        except (IncompatibleSketchError, RecipeError) as error:
            raise ExampleUnsupportedError(
                f"index {self._name!r} takes no queries by example: {error}",
                pointer=f"{pointer}/type",
                allowed=["row", "train_id", "sketch"],
            ) from error
        sketched = self._sketcher.sketch(query.content, "predicted" if label is None else label, pointer)
        if self.on_sketch is not None:
            self.on_sketch(sketched.seconds)
        resolved = QuerySketch(
            sketched.sketch,
            sketched.view,
            sketched.label,
            sketched.predicted_label,
            representation=sketched.representation,
        )
        return resolved, {SKETCH_TIMING: sketched.seconds * 1000}
