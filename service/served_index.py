"""One open index with everything it takes to answer: the attributor, and where a recipe is loaded the sketcher.

Thin over the attributor: a request becomes a question here, an answer a schema.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from indexer.attributor import Attribution, Attributor, CandidateFilter, QuerySketch, Question
from indexer.attributor.errors import QuestionError
from indexer.attributor.mistakes import mistakes_in
from indexer.attributor.noise import naming_the_noise
from indexer.recipe import RecipeError
from service.errors import ExampleUnsupportedError, InvalidExampleError, ServiceError, refuse
from service.example_sketcher import ExampleSketcher
from service.index_recipe import sketcher_of
from service.schemas.answers import (
    Answer,
    AnswerFacts,
    Hit,
    IndexReference,
    ScoresResponse,
    Sketch,
    SketchesResponse,
    StreamStart,
)
from service.schemas.questions import (
    AttributionRequest,
    ExampleQuery,
    Query,
    RowQuery,
    ScoresRequest,
    SketchesRequest,
    SketchQuery,
    Target,
)
from sketchstore.errors import IncompatibleSketchError
from sketchstore.first_use import Stamp, stamp_of
from sketchstore.manifest import MANIFEST
from sketchstore.reader import Index, open_index

Check = Callable[[], None]
FileCheck = Literal["use", "start"]
SKETCH_TIMING = "sketch"
# What is the question's fault: it is told together with whatever else is wrong with it.
MISTAKES = (QuestionError, ExampleUnsupportedError, InvalidExampleError)
AnswerKind = TypeVar("AnswerKind", bound=AnswerFacts)


def never_stop() -> None:
    """Let a computation go on: the check of a caller without a deadline."""


class ServedIndex:
    """An open index under the name it is served by.

    Attributes:
        name: The name.
        index: The open directory.
        engine: What searches it.
        methods: The methods it can serve.
        sketcher: Sketches examples; None where no recipe is loaded.
        no_recipe_reason: Why there is no sketcher, None where there is one.
        reopen: Opens the same directory with the same choices again; None where it was not opened here.
        stamp: What its manifest's file was when it was opened.
    """

    def __init__(
        self,
        name: str,
        index: Index,
        *,
        engine: Literal["faiss", "brute_force"],
        sketcher: ExampleSketcher | None,
        no_recipe_reason: str | None,
        check: FileCheck = "start",
    ) -> None:
        """Serve an open index.

        Args:
            name: The name.
            index: The open directory.
            engine: What searches it.
            sketcher: Sketches examples, or None.
            no_recipe_reason: Why there is none.
            check: Whether to map what is stored now, "start", or when it is first needed, "use".
        """
        self.name = name
        self.index = index
        self.engine = engine
        self.sketcher = sketcher
        self.no_recipe_reason = no_recipe_reason
        # The name it is served by, which need not be the one in its manifest.
        self._reference = IndexReference(name=name, revision=index.revision)
        self.reopen: Callable[[], ServedIndex] | None = None
        self.stamp: Stamp | None = None
        self._attributor = Attributor(index, engine=engine)
        self._attributor.warm()
        if check == "start":
            self._attributor.load()
        self.methods = self._attributor.methods

    @classmethod
    def open(
        cls,
        name: str,
        directory: Path,
        *,
        recipe: str | None = None,
        data_dir: Path | None = None,
        engine: Literal["faiss", "brute_force"] = "faiss",
        check: FileCheck = "start",
    ) -> "ServedIndex":
        """Open an index directory, and load its recipe where one may be loaded (`sketcher_of`).

        Args:
            name: The name to serve it by.
            directory: The index directory.
            recipe: A recipe's file or built-in name.
            data_dir: The folder of data files the recipe reads.
            engine: What searches the sketches.
            check: "start" reads and checks everything, loads the weights and sketches one example now. "use" reads the
                manifest, norms and labels, and leaves every other file until something needs it.

        Returns:
            The index.
        """
        stamp = stamp_of(directory / MANIFEST)  # before it is read: a later one shows
        index = open_index(directory, check="digests" if check == "start" else "use")
        sketcher, reason = sketcher_of(
            index, served_as=name, recipe=recipe, data_dir=data_dir, warm_up=check == "start"
        )
        served = cls(name, index, engine=engine, sketcher=sketcher, no_recipe_reason=reason, check=check)
        served.stamp = stamp
        served.reopen = partial(cls.open, name, directory, recipe=recipe, data_dir=data_dir, engine=engine, check=check)
        return served

    def attribute(self, asked: AttributionRequest, check: Check) -> Answer:
        """Answer one attribution request.

        Args:
            asked: The request.
            check: Called between steps; may raise to stop.

        Returns:
            The answer.
        """
        attribution, query, timings = self._ask(asked)
        with naming_the_noise(self.index, query, asked.noise_variance):
            return self._facts(Answer, attribution, timings, check)

    def stream(self, asked: AttributionRequest, check: Check) -> Iterator[StreamStart | Hit | AnswerFacts]:
        """Judge one attribution request now; answer it part by part later.

        Args:
            asked: The request.
            check: Called between steps; may raise to stop.

        Returns:
            The start, the hits, the answer without its hits.
        """
        attribution, query, timings = self._ask(asked)

        def parts() -> Iterator[StreamStart | Hit | AnswerFacts]:
            start = StreamStart.model_validate(attribution.start, from_attributes=True)
            yield start.model_copy(update={"index": self._reference})
            with naming_the_noise(self.index, query, asked.noise_variance):
                for hit in attribution.steps():
                    yield Hit.model_validate(hit, from_attributes=True)
                    check()
                yield self._facts(AnswerFacts, attribution, timings, check)

        return parts()

    def score(self, asked: ScoresRequest) -> ScoresResponse:
        """Rescore a given set exactly.

        Args:
            asked: The request.

        Returns:
            Nats of the set and of each member.
        """
        with self._telling_all_mistakes(asked) as resolved:
            query, _ = self._resolve(asked.query, asked.target, "/query")
            resolved.append(query)
            with naming_the_noise(self.index, query, asked.noise_variance):
                scores = self._attributor.scores(
                    query,
                    ids=asked.ids,
                    criteria=asked.criteria,
                    noise_variance=asked.noise_variance,
                    relative_noise=asked.relative_noise,
                    condition=asked.condition,
                    exclude_ids=asked.exclude_ids,
                )
        response = ScoresResponse.model_validate(scores, from_attributes=True)
        return response.model_copy(update={"index": self._reference})

    def sketch(self, asked: SketchesRequest, check: Check) -> SketchesResponse:
        """Turn queries into sketches.

        Args:
            asked: The request.
            check: Called between queries; may raise to stop.

        Returns:
            The sketches, in order.
        """
        sketches: list[Sketch] = []
        found: list[QuestionError | ServiceError] = []
        for position, query in enumerate(asked.queries):
            check()
            try:
                resolved, _ = self._resolve(query, asked.target, f"/queries/{position}")
            except MISTAKES as error:
                found.append(error)
                continue
            sketches.append(
                Sketch(values=resolved.sketch.tolist(), label=resolved.label, predicted_label=resolved.predicted_label)
            )
        if found:
            refuse(found)
        return SketchesResponse(sketches=sketches)

    def mistakes(
        self, asked: AttributionRequest | ScoresRequest, query: QuerySketch | None = None
    ) -> list[QuestionError | ServiceError]:
        """Look for everything that is wrong with a question about this index, not only for what comes first.

        Args:
            asked: The question.
            query: Its query where it is resolved already; an example is not sketched just to find more mistakes.

        Returns:
            The refusals that can be found independently of one another.
        """
        found: list[QuestionError | ServiceError] = []
        if query is None and not isinstance(asked.query, ExampleQuery):
            try:
                query, _ = self._resolve(asked.query, asked.target, "/query")
            except MISTAKES as error:
                found.append(error)
        wanted, budget = CandidateFilter(), None
        if isinstance(asked, AttributionRequest):
            wanted, budget = _filter_of(asked), None if asked.clip_budget else asked.budget
            ids: Mapping[str, Sequence[str] | None] = {
                "/filter/ids": wanted.ids,
                "/filter/exclude_ids": wanted.exclude_ids,
            }
        else:
            ids = {"/ids": asked.ids, "/exclude_ids": asked.exclude_ids}
        found += mistakes_in(
            self.index,
            query,
            noise_variance=asked.noise_variance,
            relative_noise=asked.relative_noise,
            wanted=wanted,
            ids=ids,
            condition=asked.condition,
            budget=budget,
        )
        return found

    @contextmanager
    def _telling_all_mistakes(self, asked: AttributionRequest | ScoresRequest) -> Iterator[list[QuerySketch]]:
        """Let a question be refused for everything that is wrong with it, where the block refuses it for one thing.

        Args:
            asked: The question.

        Yields:
            A list for the query once it is resolved, so that it is not resolved again.
        """
        resolved: list[QuerySketch] = []
        try:
            yield resolved
        except MISTAKES as first:
            found = self.mistakes(asked, *resolved)
            if not any((mistake.code, mistake.pointer) == (first.code, first.pointer) for mistake in found):
                found.insert(0, first)
            refuse(found, first)

    def _ask(self, asked: AttributionRequest) -> tuple[Attribution, QuerySketch, dict[str, float]]:
        with self._telling_all_mistakes(asked) as resolved:
            query, timings = self._resolve(asked.query, asked.target, "/query")
            resolved.append(query)
            question = Question(
                query=query,
                method=asked.method,
                budget=asked.budget,
                noise_variance=asked.noise_variance,
                relative_noise=asked.relative_noise,
                filter=_filter_of(asked),
                condition=asked.condition,
                clip_budget=asked.clip_budget,
                strategy=asked.strategy,
                rescore=tuple(asked.rescore),
                available=asked.available,
                min_step_nats=asked.min_step_nats,
                information_fraction=asked.information_fraction,
                seed=asked.seed,
            )
            with naming_the_noise(self.index, query, asked.noise_variance):
                return self._attributor.ask(question), query, timings

    def _resolve(self, query: Query, target: Target | None, pointer: str) -> tuple[QuerySketch, dict[str, float]]:
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
        if self.sketcher is None:
            raise ExampleUnsupportedError(
                f"index {self.name!r} takes no queries by example: {self.no_recipe_reason}",
                pointer=f"{pointer}/type",
                allowed=["row", "train_id", "sketch"],
            )
        try:
            self.sketcher.load()
        except (IncompatibleSketchError, RecipeError) as error:
            raise ExampleUnsupportedError(
                f"index {self.name!r} takes no queries by example: {error}", pointer=f"{pointer}/type"
            ) from error
        sketched = self.sketcher.sketch(query.content, "predicted" if label is None else label, pointer)
        resolved = QuerySketch(sketched.sketch, sketched.view, sketched.label, sketched.predicted_label)
        return resolved, {SKETCH_TIMING: sketched.seconds * 1000}

    def _facts(
        self, kind: type[AnswerKind], attribution: Attribution, timings: dict[str, float], check: Check
    ) -> AnswerKind:
        answer = attribution.answer(check)
        facts = kind.model_validate(answer, from_attributes=True)
        return facts.model_copy(
            update={"index": self._reference, "timings_ms": _with_total(timings, answer.timings_ms)}
        )


def _filter_of(asked: AttributionRequest) -> CandidateFilter:
    return CandidateFilter() if asked.filter is None else CandidateFilter(**asked.filter.model_dump())


def _with_total(before: dict[str, float], answering: dict[str, float]) -> dict[str, float]:
    """Put what came before the answer, a sketch, into its timings and their total.

    Args:
        before: Milliseconds by stage before the answer.
        answering: Milliseconds by stage of the answer, with their total.

    Returns:
        All stages with the total of all.
    """
    total = answering["total"] + sum(before.values())
    return {**before, **answering, "total": total}
