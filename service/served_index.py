"""One open index with everything it takes to answer: the attributor, and where a recipe is loaded the sketcher.

Thin over the attributor: a request becomes a question here, an answer a schema.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from indexer.attributor import Attribution, Attributor, CandidateFilter, QuerySketch, Question
from indexer.attributor.errors import QuestionError
from indexer.attributor.mistakes import mistakes_in
from indexer.attributor.noise import naming_the_noise
from service.errors import ServiceError, refuse
from service.example_sketcher import ExampleSketcher
from service.index_recipe import sketcher_of
from service.observer import Observer
from service.query_resolver import MISTAKES, Check, QueryResolver
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
    ScoresRequest,
    SketchesRequest,
)
from sketchstore.first_use import Stamp, stamp_of
from sketchstore.manifest import MANIFEST
from sketchstore.reader import Index, KnownFile, open_index

FileCheck = Literal["use", "start"]
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
        known_files: What its files were when it was opened; the next revision shares some.
        attributor: Answers questions on it.
        reference: What its answers say they are from.
        queries: Turns what requests name into queries.
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
        self.reference = IndexReference(name=name, revision=index.revision)
        self.reopen: Callable[[], ServedIndex] | None = None
        self.stamp: Stamp | None = None
        self.known_files: frozenset[KnownFile] = frozenset()
        self.attributor = Attributor(index, engine=engine)
        self.attributor.warm()
        if check == "start":
            self.attributor.load()
        self.methods = self.attributor.methods
        self.queries = QueryResolver(name, self.attributor, sketcher, no_recipe_reason)
        self._observer = Observer()

    def observe(self, observer: Observer) -> None:
        """Have somebody told what is answered; who was told before is not told any more.

        Args:
            observer: Whom to tell.
        """
        self._observer = observer
        self.attributor.watch_rounds(partial(observer.round_served, self.name))
        self.queries.on_sketch = partial(observer.sketched, self.name)

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
        derived: bool = True,
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
            derived: Whether files below derived/ that are listed nowhere are refused.

        Returns:
            The index.
        """
        stamp = stamp_of(directory / MANIFEST)  # before it is read: a later one shows
        index = open_index(directory, check="digests" if check == "start" else "use", derived=derived)
        sketcher, reason = sketcher_of(
            index, served_as=name, recipe=recipe, data_dir=data_dir, warm_up=check == "start"
        )
        served = cls(name, index, engine=engine, sketcher=sketcher, no_recipe_reason=reason, check=check)
        served.stamp = stamp
        served.known_files = index.known_files()
        # What is derived of a new revision may be written just now: its file is there for a moment before it is listed.
        served.reopen = partial(
            cls.open, name, directory, recipe=recipe, data_dir=data_dir, engine=engine, check=check, derived=False
        )
        return served

    def attribute(self, asked: AttributionRequest, check: Check) -> Answer:
        """Answer one attribution request.

        Args:
            asked: The request.
            check: Called between steps; may raise to stop.

        Returns:
            The answer.
        """
        begun = time.perf_counter()
        attribution, query, timings = self._ask(asked)
        with naming_the_noise(self.index, query, asked.noise_variance):
            answer = self._facts(Answer, attribution, timings, check)
            answer = answer.model_copy(update={"hits": self._with_metadata(asked, answer.hits)})
        self._observer.attributed(self.name, answer, time.perf_counter() - begun)
        return answer

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
            yield start.model_copy(update={"index": self.reference})
            with naming_the_noise(self.index, query, asked.noise_variance):
                for hit in attribution.steps():
                    yield self._with_metadata(asked, [Hit.model_validate(hit, from_attributes=True)])[0]
                    check()
                facts = self._facts(AnswerFacts, attribution, timings, check)
            # Not the time that passed: the client read meanwhile.
            self._observer.attributed(self.name, facts, facts.timings_ms["total"] / 1000)
            yield facts

        return parts()

    def score(self, asked: ScoresRequest, check: Check) -> ScoresResponse:
        """Rescore a given set exactly.

        Args:
            asked: The request.
            check: Called between members; may raise to stop.

        Returns:
            Nats of the set and of each member.
        """
        with self._telling_all_mistakes(asked) as resolved:
            query, _ = self.queries.resolve(asked.query, asked.target, "/query")
            resolved.append(query)
            with naming_the_noise(self.index, query, asked.noise_variance):
                scores = self.attributor.scores(
                    query,
                    ids=asked.ids,
                    criteria=asked.criteria,
                    methods=asked.methods,
                    noise_variance=asked.noise_variance,
                    relative_noise=asked.relative_noise,
                    condition=asked.condition,
                    exclude_ids=asked.exclude_ids,
                    check=check,
                )
        response = ScoresResponse.model_validate(scores, from_attributes=True)
        return response.model_copy(update={"index": self.reference})

    def sketch(self, asked: SketchesRequest, check: Check) -> SketchesResponse:
        """Turn queries into sketches.

        Args:
            asked: The request.
            check: Called between queries; may raise to stop.

        Returns:
            The sketches, in order.
        """
        return SketchesResponse(
            sketches=[
                Sketch(values=query.sketch.tolist(), label=query.label, predicted_label=query.predicted_label)
                for query in self.queries.resolve_all(asked.queries, asked.target, check)
            ]
        )

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
                query, _ = self.queries.resolve(asked.query, asked.target, "/query")
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
            query, timings = self.queries.resolve(asked.query, asked.target, "/query")
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
                return self.attributor.ask(question), query, timings

    def _with_metadata(self, asked: AttributionRequest, hits: list[Hit]) -> list[Hit]:
        if not asked.include_metadata:
            return hits
        return [hit.model_copy(update={"metadata": self.index.examples.metadata(hit.row)}) for hit in hits]

    def _facts(
        self, kind: type[AnswerKind], attribution: Attribution, timings: dict[str, float], check: Check
    ) -> AnswerKind:
        answer = attribution.answer(check)
        facts = kind.model_validate(answer, from_attributes=True)
        return facts.model_copy(update={"index": self.reference, "timings_ms": _with_total(timings, answer.timings_ms)})


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
