"""The attributor: an open index that answers questions, with what is worth keeping between them."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from attribution.acquired import acquire
from attribution.information import info_gain
from indexer.attributor.answers import Answer, IndexReference, MemberScores, Scores, SetScores
from indexer.attributor.baselines import BASELINES, check_servable, lacking, member_scores
from indexer.attributor.candidates import PoolRows
from indexer.attributor.coarse import CoarseViews
from indexer.attributor.coarse import compile_kernels as compile_scans
from indexer.attributor.compiled_filter import compile_kernels as compile_filter
from indexer.attributor.conditioning import Conditioning
from indexer.attributor.engines import ENGINES, Engines
from indexer.attributor.errors import DuplicateIdError, EmptyPoolError
from indexer.attributor.group_nats import GroupNats, GroupQuestion, group_nats
from indexer.attributor.groups import Groups, groups_by, groups_of_ids
from indexer.attributor.known_neighbours import KnownNeighbours
from indexer.attributor.near_duplicates import NearDuplicates
from indexer.attributor.noise import Noise, resolve_noise
from indexer.attributor.pool import Pool, check_comparable, resolve_pool, rows_of_ids, rows_to_exclude
from indexer.attributor.queries import (
    check_query,
    resolve_query_row,
    resolve_sketch,
    resolve_train_id,
    resolve_train_row,
)
from indexer.attributor.questions import (
    CONDITIONS,
    CRITERIA,
    METHODS,
    STRATEGIES,
    CandidateFilter,
    QuerySketch,
    Question,
    Target,
    check_budget,
    check_method,
    check_option,
    check_question,
)
from indexer.attributor.rules import Asked
from indexer.attributor.selection import Attribution
from indexer.attributor.spectra import MAX_COMPUTED_SIZE, Spectra
from indexer.attributor.stored_rows import StoredRows, compile_kernels
from sketchstore.reader import Index

Item = TypeVar("Item")


class Attributor:
    """Answers questions on one open index. Safe for several threads; what they share is made once.

    Args:
        index: The open index.
        engine: ``faiss`` or ``brute_force``. FAISS needs its derived entries; where one is missing, brute force
            searches instead and the answer says so.
        strategy: How approximate InfoGain asks the index where a question does not say: ``certified`` or ``literal``.
        cache_bytes: What spectra, and posteriors, may each occupy in memory.
        max_computed_size: Largest Gram matrix, in rows, that is computed while a question waits where none is stored.
    """

    def __init__(
        self,
        index: Index,
        *,
        engine: str = "faiss",
        strategy: str = "certified",
        cache_bytes: int = 1 << 30,
        max_computed_size: int = MAX_COMPUTED_SIZE,
    ) -> None:
        check_option(engine, ENGINES, "/engine")
        check_option(strategy, STRATEGIES, "/strategy")
        self.index = index
        self.strategy = strategy
        self._engines = Engines(index, engine)
        self._spectra = Spectra(index, cache_bytes, max_computed_size)
        self._coarse = CoarseViews(index)
        self._neighbours = KnownNeighbours()
        self._stored = {name: StoredRows(view) for name, view in index.views.items()}

    @property
    def engine(self) -> str:
        """The engine asked for."""
        return self._engines.engine

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods this index can serve."""
        return tuple(method for method in METHODS if method not in self.lacking)

    @cached_property
    def lacking(self) -> Mapping[str, str]:
        """By method that this index cannot serve: what it lacks, and how to build one that has it."""
        has_posterior = any(
            self._spectra.available(view, label) for view in self.index.views.values() for label in view.partitions
        )
        found = lacking(self.index, has_posterior=has_posterior)
        if not has_posterior:
            found["infoloss"] = "no Gram matrix of its rows is stored. Write them with `indexer derive`"
        return found

    def warm(self) -> None:
        """Compile the kernels, so that no question waits for a compiler. Reads no file of the index."""
        for dtype in {view.storage_dtype for view in self.index.views.values()}:
            compile_kernels(dtype)
        compile_scans()
        compile_filter()

    def watch_rounds(self, watcher: Callable[[int, float], None] | None) -> None:
        """Tell somebody of every round of scans that selections in flight share.

        Args:
            watcher: Called with the questions served in a round and the seconds it took, by the thread that served it;
                it must be quick and raise nothing. None: nobody.
        """
        self._coarse.rounds.watcher = watcher

    def load(self) -> None:
        """Map what is stored and open every search, so that no question waits for it; what is damaged is refused."""
        for view in self.index.views.values():
            for label in view.partitions:
                self._engines.search(view, label)
                self._spectra.kernel(view, label)
            for number in range(view.num_shards):
                view.shard(number)
        self.index.examples.id(0)

    def resolve_query_row(self, row: int, target: Target | None = None) -> QuerySketch:
        """Take a query of the set sketched at build; see ``queries.resolve_query_row``.

        Args:
            row: Its row in the query set.
            target: "predicted", "true" or a label. None: the predicted one.

        Returns:
            The query.
        """
        return resolve_query_row(self.index, row, target)

    def resolve_train_row(self, row: int, target: Target | None = None, *, include_self: bool = False) -> QuerySketch:
        """Take a training example as the query; see ``queries.resolve_train_row``.

        Args:
            row: Its row.
            target: "predicted", "true" or a label. None: the class its stored sketch is of.
            include_self: Whether it stays among the candidates and in D.

        Returns:
            The query.
        """
        return resolve_train_row(self.index, row, target, include_self=include_self)

    def resolve_train_id(self, id: str, target: Target | None = None, *, include_self: bool = False) -> QuerySketch:
        """Take a training example as the query, by its id; see ``queries.resolve_train_id``.

        Args:
            id: Its external id.
            target: "predicted", "true" or a label. None: the class its stored sketch is of.
            include_self: Whether it stays among the candidates and in D.

        Returns:
            The query.
        """
        return resolve_train_id(self.index, id, target, include_self=include_self)

    def resolve_sketch(
        self, values: Sequence[float] | Tensor, label: int | None = None, target: Target | None = None
    ) -> QuerySketch:
        """Take a sketch made elsewhere by this index's sketch specification; see ``queries.resolve_sketch``.

        Args:
            values: The sketch in measurement units.
            label: The class whose measurement was sketched.
            target: A label, which must be that class.

        Returns:
            The query.
        """
        return resolve_sketch(self.index, values, label, target)

    def ask(self, question: Question) -> Attribution:
        """Begin to answer a question.

        Args:
            question: The question.

        Returns:
            Facts at once, hits as they are asked for, then the answer.
        """
        started = time.perf_counter()
        check_question(question, self.methods, self.lacking)
        check_query(self.index, question.query)
        pool = resolve_pool(self.index, question.query, question.filter, question.condition)
        noise = resolve_noise(self.index, pool.view.name, pool.label, question.noise_variance, question.relative_noise)
        warnings = [] if noise.warning is None else [noise.warning]
        budget = question.budget
        available = int(pool.candidates.numel())
        if budget > available:
            if not question.clip_budget:
                check_budget(budget, available)
            warnings.append(f"budget {budget} was clipped to the {available} rows that may be selected.")
            budget = available
        search = None
        if question.method == "infogain_approx":
            search, warning = self._engines.search(pool.view, pool.label)
            warnings += [] if warning is None else [warning]
        asked = self._asked(question, pool, noise, budget)
        check_servable(self.index, asked, question.method, question.query)
        if question.method == "infoloss":
            asked.conditioning.posterior("/method")
        elif question.information_fraction is not None:
            asked.conditioning.posterior("/information_fraction")
        elif question.available:
            asked.conditioning.posterior("/available")
        return Attribution(
            self.index,
            question,
            asked,
            noise,
            NearDuplicates(pool, asked.stored, self._kernel(pool), self._coarse, self._neighbours),
            search=search,
            strategy=question.strategy or self.strategy,
            warnings=tuple(warnings),
            started=started,
        )

    def steps(self, question: Question) -> Iterator[object]:
        """Answer a question in parts: the facts, each hit, and the answer.

        Args:
            question: The question.

        Yields:
            A ``Start``, the ``Hit``s, and the ``Answer``.
        """
        attribution = self.ask(question)
        yield attribution.start
        yield from attribution.steps()
        yield attribution.answer()

    def answer(self, question: Question) -> Answer:
        """Answer a question.

        Args:
            question: The question.

        Returns:
            The answer.
        """
        return self.ask(question).answer()

    def scores(
        self,
        query: QuerySketch,
        ids: Sequence[str],
        *,
        noise_variance: float | None = None,
        relative_noise: float | None = None,
        criteria: Sequence[str] = CRITERIA,
        methods: Sequence[str] = (),
        condition: str = "comparable",
        exclude_ids: Sequence[str] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Scores:
        """Compute the exact nats of a set, and of each of its members alone, and what other methods score them.

        Args:
            query: The query.
            ids: The set: ids of comparable training examples, each once.
            noise_variance: σ² in measurement², if not by ``relative_noise``.
            relative_noise: σ² in units of the mean squared norm of the comparable rows.
            criteria: ``infogain``, ``infoloss`` or both.
            methods: Baselines whose scores of each member are wanted: ``trak``, ``graddot``, ``repsim``, ``relatif``.
            condition: D, which InfoLoss leaves the set out of: every comparable row, or the pool, which without a
                filter is the same.
            exclude_ids: Examples that leave D.
            check: Called between members; may raise to stop.

        Returns:
            The nats.

        Raises:
            QuestionError: If it cannot be computed as asked.
        """
        check_option(condition, CONDITIONS, "/condition")
        for place, criterion in enumerate(criteria):
            check_option(criterion, CRITERIA, f"/criteria/{place}")
        for place, method in enumerate(methods):
            check_option(method, BASELINES, f"/methods/{place}")
            check_method(method, self.methods, self.lacking, f"/methods/{place}")
        check_query(self.index, query)
        excluded = None if exclude_ids is None else list(exclude_ids)
        if excluded is not None:
            rows_to_exclude(self.index, excluded, "/exclude_ids")
        pool = resolve_pool(self.index, query, CandidateFilter(exclude_ids=excluded), condition)
        rows = self._rows_to_score(pool, ids)
        noise = resolve_noise(self.index, pool.view.name, pool.label, noise_variance, relative_noise)
        asked = self._asked(Question(query), pool, noise, rows.numel())
        sketches = asked.stored.sketches(rows)
        of_set: dict[str, float | None] = {"infogain": None, "infoloss": None}
        of_members: dict[str, list[float | None]] = {name: [None] * rows.numel() for name in of_set}
        if "infogain" in criteria:
            of_set["infogain"] = info_gain(asked.query, sketches, noise.variance)
            of_members["infogain"] = [
                next(acquire(asked.query, sketch.unsqueeze(0), noise.variance)).cumulative_nats
                for sketch in _checked(sketches, check)
            ]
        if "infoloss" in criteria:
            given = asked.conditioning.posterior("/criteria")
            positions = asked.conditioning.positions(rows)
            of_set["infoloss"] = given.info_loss_nats(positions)
            of_members["infoloss"] = [
                given.info_loss_nats([position]) for position in _checked(positions.tolist(), check)
            ]
        scored = replace(asked, pool=replace(pool, candidates=rows))
        by_method = {
            method: member_scores(self.index, scored, method, query, f"/methods/{place}")
            for place, method in enumerate(methods)
        }
        members = tuple(
            MemberScores(row, id, gain, loss, {method: by_method[method][place] for method in by_method})
            for place, (row, id, gain, loss) in enumerate(
                zip(rows.tolist(), ids, of_members["infogain"], of_members["infoloss"], strict=True)
            )
        )
        return Scores(
            index=IndexReference(self.index.name, self.index.revision),
            noise_variance=noise.variance,
            relative_noise=noise.relative,
            set=SetScores(of_set["infogain"], of_set["infoloss"]),
            members=members,
            warnings=() if noise.warning is None else (noise.warning,),
        )

    def groups(self, named: str | Mapping[str, Sequence[str]], most: int = 1000) -> Groups:
        """Make the groups of a question.

        Args:
            named: A metadata column, or ``label``: a group for each value. Or ids by the group's name.
            most: How many groups a column may make.

        Returns:
            The groups.
        """
        return groups_by(self.index, named, most) if isinstance(named, str) else groups_of_ids(self.index, named)

    def group_nats(self, question: GroupQuestion, check: Callable[[], None] = lambda: None) -> GroupNats:
        """Compute what groups of training examples tell queries, and what their withdrawal would cost.

        Args:
            question: The queries, the groups and the noise.
            check: Called between groups; may raise to stop.

        Returns:
            Nats by query and group.
        """
        for place, criterion in enumerate(question.criteria):
            check_option(criterion, CRITERIA, f"/criteria/{place}")
        return group_nats(self.index, self._spectra, self._stored.__getitem__, question, check)

    def _rows_to_score(self, pool: Pool, ids: Sequence[str]) -> Tensor:
        if not ids:
            raise EmptyPoolError("ids is empty; name at least one training example.", pointer="/ids")
        seen: set[str] = set()
        for place, id in enumerate(ids):
            if id in seen:
                raise DuplicateIdError(f"id {id!r} is listed twice; a set has it once.", pointer=f"/ids/{place}")
            seen.add(id)
        rows = rows_of_ids(self.index, ids, "/ids")
        check_comparable(self.index, rows, pool.label, "/ids")
        outside = ~torch.isin(rows, pool.conditioning)
        if bool(outside.any()):
            place = int(outside.nonzero()[0])
            raise EmptyPoolError(
                f"example {ids[place]!r} is left out of D, as the query itself or by exclude_ids, and cannot be "
                "scored. Leave it out of ids, or ask with include_self.",
                pointer=f"/ids/{place}",
            )
        return rows

    def _kernel(self, pool: Pool) -> Tensor | None:
        return self._spectra.kernel(pool.view, pool.label)

    def _asked(self, question: Question, pool: Pool, noise: Noise, budget: int) -> Asked:
        query = question.query.sketch.double()
        stored = self._stored[pool.view.name]
        conditioning = Conditioning(pool, stored, self._spectra, query, noise.variance)
        rows = PoolRows(pool, stored, self._kernel(pool), query, conditioning.cross)
        return Asked(pool, stored, rows, conditioning, query, noise.variance, budget, self._coarse)


def _checked(items: Iterable[Item], check: Callable[[], None]) -> Iterator[Item]:
    for item in items:
        check()
        yield item
