"""One question being answered: facts before the first step, hits one by one, and the answer with its exact nats."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch

from attribution.acquired import AcquiredSet, acquire
from attribution.errors import NotPositiveDefiniteError
from attribution.exact_sums import inner_product
from attribution.information import info_gain_nats
from attribution.steps import Step
from indexer.attributor.answers import (
    Answer,
    Hit,
    IndexReference,
    Information,
    QueryFacts,
    Represents,
    SearchFacts,
    Start,
)
from indexer.attributor.baselines import baseline_steps
from indexer.attributor.engines import IndexSearch
from indexer.attributor.near_duplicates import NearDuplicates
from indexer.attributor.noise import Noise
from indexer.attributor.questions import Question
from indexer.attributor.rules import (
    SCORE_UNITS,
    Asked,
    approximate_steps,
    gain_steps,
    loss_steps,
    random_steps,
    selected_rows,
    shares_scans,
)
from sketchstore.reader import Index

#: Ids listed of what a hit stands for; the count is of all.
_MOST_IDS = 20


class Attribution:
    """The answer to one question, made as it is asked for. Belongs to one thread.

    Args:
        index: The index.
        question: The question, checked.
        asked: What its rule works with.
        noise: Its noise.
        duplicates: Finds what hits stand for.
        search: The index's search, for approximate InfoGain.
        strategy: How that search is asked.
        warnings: What to beware of.
        started: When the question came, by ``time.perf_counter``.

    Attributes:
        start: What is known before the first step.
    """

    def __init__(
        self,
        index: Index,
        question: Question,
        asked: Asked,
        noise: Noise,
        duplicates: NearDuplicates,
        *,
        search: IndexSearch | None,
        strategy: str,
        warnings: tuple[str, ...],
        started: float,
    ) -> None:
        self._index = index
        self._question = question
        self._asked = asked
        self._duplicates = duplicates
        self._search = search
        self._strategy = strategy
        self._shares_scans = search is not None and shares_scans(asked, search, strategy)
        # Whoever multiplies codes waits for rounds, which serve the more the more wait for them.
        self._at_a_seat = not asked.coarse.has_codes(asked.pool)
        self._seconds = dict.fromkeys(("prepare", "search", "select", "rescore", "represents"), 0.0)
        self._seconds["prepare"] = time.perf_counter() - started
        self._taken: list[Step] = []
        self._stopped = "budget"
        self._available: float | None = None
        self._answer: Answer | None = None
        # InfoGain of what the InfoLoss rule selected; the other rules' steps carry it.
        self._gain = (
            AcquiredSet(asked.query.unsqueeze(0), asked.noise_variance, asked.budget)
            if question.method == "infoloss"
            else None
        )
        self.start = Start(
            index=IndexReference(index.name, index.revision),
            method=question.method,
            noise_variance=noise.variance,
            relative_noise=noise.relative,
            query=QueryFacts(
                question.query.label,
                question.query.predicted_label,
                inner_product(asked.query, asked.query),
                None,
            ),
            budget=asked.budget,
            candidates=int(asked.pool.candidates.numel()),
            nats_criterion="infoloss" if question.method == "infoloss" else "infogain",
            score_unit=SCORE_UNITS[question.method],
            warnings=warnings,
        )
        self._picks = self._select()

    def steps(self) -> Iterator[Hit]:
        """Select, one hit at a time.

        What a hit represents leaves out what was selected so far; in the answer it leaves out the whole selection.

        Yields:
            Hits, in order, from where the selection stands.
        """
        while True:
            # Whoever reads the hits may take its time: its turn ends with each.
            with self._turn():
                step = next(self._picks, None)
            if step is None:
                return
            began = time.perf_counter()
            hit = self._hit(step, {taken.position for taken in self._taken})
            self._seconds["represents"] += time.perf_counter() - began
            yield hit

    def answer(self, check: Callable[[], None] | None = None) -> Answer:
        """Select what is left to select, and put the answer together.

        Args:
            check: Called after every pick; may raise to stop, as a service does at a deadline.

        Returns:
            The answer.
        """
        with self._turn():
            for _ in self._picks:
                if check is not None:
                    check()
                self._pass_turn()
        if self._answer is None:
            with self._seat():
                self._answer = self._assemble()
        return self._answer

    def _turn(self) -> AbstractContextManager[None]:
        # Selections that share scans work briefly between them; the steps of all others are scans of their own.
        return self._asked.coarse.rounds.turn() if self._shares_scans else self._seat()

    def _pass_turn(self) -> None:
        if self._shares_scans:
            self._asked.coarse.rounds.pass_turn()
        elif self._at_a_seat:
            self._asked.coarse.seats.pass_on()

    def _seat(self) -> AbstractContextManager[None]:
        return self._asked.coarse.seats.taken() if self._at_a_seat else nullcontext()

    def _select(self) -> Iterator[Step]:
        question = self._question
        if question.information_fraction is not None:
            began = time.perf_counter()
            self._available = self._asked.conditioning.posterior("/information_fraction").info_gain_nats
            self._seconds["rescore"] += time.perf_counter() - began
        steps = self._rule()
        while True:
            began, asking = time.perf_counter(), self._asked.coarse.rounds.seconds_asking
            step = next(steps, None)
            if step is not None and self._gain is not None:
                self._gain.add(self._asked.stored.sketches(torch.tensor([step.position]))[0])
            searching = self._asked.coarse.rounds.seconds_asking - asking
            self._seconds["search"] += searching
            self._seconds["select"] += time.perf_counter() - began - searching
            if step is None:
                self._stopped = "budget" if len(self._taken) == self._asked.budget else "uninformative"
                return
            if question.min_step_nats is not None and step.step_nats < question.min_step_nats:
                self._stopped = "min_step_nats"
                self._forget()
                return
            self._taken.append(step)
            yield step
            if question.information_fraction is not None:
                assert self._available is not None, "computed above"
                if self._infogain() >= question.information_fraction * self._available:
                    self._stopped = "information_fraction"
                    return

    def _rule(self) -> Iterator[Step]:
        match self._question.method:
            case "infogain_approx":
                assert self._search is not None, "approximate InfoGain asks an index"
                return approximate_steps(self._asked, self._search, self._strategy)
            case "infogain":
                return gain_steps(self._asked)
            case "infoloss":
                return loss_steps(self._asked)
            case "random":
                return random_steps(self._asked, self._question.seed)
            case method:
                return baseline_steps(self._index, self._asked, method, self._question.query)

    def _forget(self) -> None:
        # Takes the last pick of the InfoLoss rule out of the gain again: it was not selected after all.
        if self._gain is None:
            return
        self._gain = AcquiredSet(self._asked.query.unsqueeze(0), self._asked.noise_variance, self._asked.budget)
        for sketch in self._asked.stored.sketches(selected_rows(self._taken)):
            self._gain.add(sketch)

    def _infogain(self) -> float:
        # InfoGain of what is selected so far.
        if self._gain is not None:
            return info_gain_nats(
                float(self._gain.prior_variances[0]), float(self._gain.reductions[0]), float(self._gain.variances[0])
            )
        return self._taken[-1].cumulative_nats if self._taken else 0.0

    def _posterior_variance(self) -> float:
        # v(x_* | what is selected).
        if self._gain is not None:
            return float(self._gain.variances[0])
        return self._taken[-1].query_variance if self._taken else self.start.query.prior_variance

    def _assemble(self) -> Answer:
        began = time.perf_counter()
        # Directions of removals are megabytes a question, so that not every one in flight has them at once.
        with nullcontext() if self._at_a_seat else self._asked.coarse.seats.taken():
            information, warnings = self._information()
        rescored = time.perf_counter()
        rows = [step.position for step in self._taken]
        self._duplicates.find(rows)
        hits = tuple(self._hit(step, set(rows)) for step in self._taken)
        self._seconds["rescore"] += rescored - began
        self._seconds["represents"] += time.perf_counter() - rescored
        start = self.start
        timings = {name: 1e3 * seconds for name, seconds in self._seconds.items()}
        return Answer(
            index=start.index,
            method=start.method,
            noise_variance=start.noise_variance,
            relative_noise=start.relative_noise,
            query=QueryFacts(
                start.query.label,
                start.query.predicted_label,
                start.query.prior_variance,
                self._posterior_variance(),
            ),
            hits=hits,
            nats_criterion=start.nats_criterion,
            score_unit=start.score_unit,
            information=information,
            search=self._search_facts(),
            stopped=self._stopped,
            warnings=(*start.warnings, *warnings),
            timings_ms={**timings, "total": sum(timings.values())},
        )

    def _information(self) -> tuple[Information, tuple[str, ...]]:
        gain = self._infogain()
        loss, warnings = self._infoloss()
        available, reason = self._available_nats()
        fraction = gain / available if available else None
        return Information(gain, loss, available, fraction, reason), warnings

    def _infoloss(self) -> tuple[float | None, tuple[str, ...]]:
        if self._question.method == "infoloss":
            return (self._taken[-1].cumulative_nats if self._taken else 0.0), ()
        if "infoloss" not in self._question.rescore:
            return None, ()
        conditioning = self._asked.conditioning
        if (reason := conditioning.unavailable) is not None:
            return None, (f"infoloss_nats is null: {reason}",)
        try:
            given = conditioning.posterior("/rescore")
        except NotPositiveDefiniteError as error:
            return None, (f"infoloss_nats is null: {error}",)
        return given.info_loss_nats(conditioning.positions(selected_rows(self._taken))), ()

    def _available_nats(self) -> tuple[float | None, str | None]:
        question, conditioning = self._question, self._asked.conditioning
        if self._available is not None:
            return self._available, None
        if question.available is False:
            return None, "not asked for: available is false"
        if question.available is None:
            if not self._asked.pool.whole:
                return None, (
                    "no cached matrix covers D: condition is pool and a filter limits the pool. Ask with "
                    "available true to compute it"
                )
            if (reason := conditioning.unavailable) is not None:
                return None, reason
            try:
                return conditioning.posterior("/available").info_gain_nats, None
            except NotPositiveDefiniteError as error:
                return None, str(error)
        return conditioning.posterior("/available").info_gain_nats, None

    def _search_facts(self) -> SearchFacts:
        last = self._taken[-1] if self._taken else None
        counted = (last.index_queries, last.rows_scored, last.bytes_read) if last is not None else (0, 0, 0)
        if self._search is None:
            return SearchFacts("none", None, None, True, *counted)
        return SearchFacts(self._search.engine, self._search.factory, self._strategy, self._search.exact, *counted)

    def _hit(self, step: Step, selected: set[int]) -> Hit:
        examples = self._index.examples
        near = [row for row in self._duplicates.of(step.position).tolist() if row not in selected]
        label = int(self._index.labels[step.position])
        return Hit(
            rank=step.rank,
            row=step.position,
            id=examples.id(step.position),
            label=label if label >= 0 else None,
            score=step.score,
            covariance=step.covariance,
            step_nats=step.step_nats,
            cumulative_nats=step.cumulative_nats,
            represents=Represents(len(near), tuple(examples.id(row) for row in near[:_MOST_IDS])),
        )


def infogain_of_rows(asked: Asked, rows: torch.Tensor) -> float:
    """Compute the exact InfoGain of some rows.

    Args:
        asked: The question.
        rows: The rows.

    Returns:
        Nats.
    """
    cumulative = 0.0
    for step in acquire(asked.query, asked.stored.sketches(rows), asked.noise_variance):
        cumulative = step.cumulative_nats
    return cumulative
