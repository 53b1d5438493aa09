"""A coreset from an open index: the training rows that inform many stored queries at once (method.md section 5)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.candidates import Candidates
from attribution.covariance_table import (
    MAX_TABLE_BYTES,
    CovarianceTable,
    DenseTable,
    check_table_size,
    table_bytes,
)
from attribution.exact_sums import inner_product_error
from attribution.many_loss import ManyPosterior
from attribution.many_queries import WEIGHTINGS, select_many, select_many_infoloss
from attribution.posterior import QueryPosterior
from attribution.steps import ManyStep
from indexer.attributor.coreset_queries import comparable_queries
from indexer.attributor.errors import (
    BudgetRangeError,
    BudgetTooLargeError,
)
from indexer.attributor.fused_table import FusedTable, row_products
from indexer.attributor.noise import Noise, resolve_noise
from indexer.attributor.pool import partition_label, positions_in, query_view
from indexer.attributor.questions import check_option
from indexer.attributor.spectra import Spectra
from indexer.attributor.stored_rows import StoredRows
from sketchstore.reader import Index
from sketchstore.view import View

RULES = ("infogain", "infogain_approx", "infoloss")
#: What one spectrum may occupy; there is only one.
_SPECTRUM_BYTES = 1 << 30


@dataclass(frozen=True)
class CoresetQuestion:
    """Which training rows inform these queries together?

    Attributes:
        budget: How many rows to select.
        rule: ``infogain``, ``infogain_approx`` or ``infoloss``.
        weighting: ``inverse_variance`` or ``uniform``.
        num_queries: Take the first so many stored queries; None: all of them.
        label: Only queries that the model gives this label. Needed where rows of one class compare only.
        quota_per_label: The most picks per label of the training rows.
        noise_variance: σ² in squared measurement units.
        relative_noise: σ² in units of the mean squared norm of the comparable rows. Not both; neither: the index's
            tuned default, else 1.0 with a warning.
        max_table_bytes: The most memory for the table of candidates × queries, 4 bytes each.
    """

    budget: int
    rule: str = "infogain"
    weighting: str = "inverse_variance"
    num_queries: int | None = None
    label: int | None = None
    quota_per_label: int | None = None
    noise_variance: float | None = None
    relative_noise: float | None = None
    max_table_bytes: int = MAX_TABLE_BYTES


@dataclass(frozen=True)
class CoresetPick:
    """One selected row.

    Attributes:
        rank: Order of selection, from 1.
        row: The training row.
        id: Its external id.
        label: Its label; None where it has none.
        score: What the rule maximised: not nats.
        mean_nats: Information of all rows so far about a query, mean over the queries.
    """

    rank: int
    row: int
    id: str
    label: int | None
    score: float
    mean_nats: float


class StoredCandidates:
    """Stored rows as ``attribution``'s Candidates.

    Args:
        view: The view.
        rows: Their rows, int64 [c], ascending.
    """

    def __init__(self, view: View, rows: Tensor) -> None:
        self.rows = rows
        self._stored = StoredRows(view)
        self._squared_norms = view.squared_norms[rows]

    @property
    def count(self) -> int:
        """How many candidates there are."""
        return int(self.rows.numel())

    @property
    def dim(self) -> int:
        """The sketch dimension d."""
        return self._stored.dim

    @property
    def relative_error(self) -> float:
        """Error bound of :meth:`products`, relative to the product of the norms."""
        return inner_product_error(self.dim, torch.float64)

    def squared_norms(self) -> Tensor:
        """Give ‖φ_n‖² of every candidate.

        Returns:
            float64 [c].
        """
        return self._squared_norms

    def products(self, vectors: Tensor) -> Tensor:
        """Multiply every candidate with each vector.

        Args:
            vectors: float64 [b, d].

        Returns:
            float64 [b, c].
        """
        return torch.stack([self._stored.products(self.rows, vector) for vector in vectors])

    def sketches(self, positions: Tensor) -> Tensor:
        """Read candidates as stored.

        Args:
            positions: Places among the candidates, int64 [m].

        Returns:
            float64 [m, d].
        """
        return self._stored.sketches(self.rows[positions])


class Coreset:
    """A coreset being selected: facts at once, picks as they are asked for.

    Memory beside the mapped sketches: ``table_bytes`` + 12 q d + 8 (2 t d + 2 t² + t q) bytes for a budget of t;
    ``infoloss`` adds the spectrum and one more matrix of its size, 24 d² bytes in all.

    Args:
        index: The open index.
        question: What is asked.

    Attributes:
        first_query: One of the queries: all meet the same rows.
        view: The view.
        label: The class whose rows alone are comparable; None where all are.
        noise: σ² in both units.
        queries: Their sketches, float64 [q, d].
        num_queries: q.
        candidates: How many rows may be selected.
        table_bytes: 4 bytes per candidate and query.

    Raises:
        BudgetRangeError: If the budget or the quota is not a whole number from 1.
        BudgetTooLargeError: If it exceeds what candidates and quotas allow.
    """

    def __init__(self, index: Index, question: CoresetQuestion) -> None:
        check_option(question.rule, RULES, "/rule")
        check_option(question.weighting, WEIGHTINGS, "/weighting")
        for name, value in (("budget", question.budget), ("quota_per_label", question.quota_per_label)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise BudgetRangeError(
                    f"{name} is {value!r}; it must be a whole number from 1.", pointer=f"/{name}", allowed={"ge": 1}
                )
        self.index = index
        self.question = question
        queries = comparable_queries(index, question.num_queries, question.label)
        self.first_query = queries[0]
        self.view = query_view(index, queries[0])
        self.label = partition_label(self.view, queries[0])
        self.noise: Noise = resolve_noise(
            index, self.view.name, self.label, question.noise_variance, question.relative_noise
        )
        self.num_queries = len(queries)
        self.queries = torch.stack([query.sketch for query in queries]).double()
        self._rows = StoredCandidates(self.view, self.view.partition_rows(self.label))
        self._labels = index.labels[self._rows.rows]
        self.candidates = self._rows.count
        self.table_bytes = table_bytes(self.candidates, self.num_queries)
        check_table_size(self.candidates, self.num_queries, question.max_table_bytes)
        self._quotas = None
        available = self.candidates
        if question.quota_per_label is not None:
            found, counts = torch.unique(self._labels, return_counts=True)
            self._quotas = {int(label): question.quota_per_label for label in found}
            available = int(torch.clamp(counts, max=question.quota_per_label).sum())
        if question.budget > available:
            raise BudgetTooLargeError(
                f"budget {question.budget} exceeds the {available} rows that may be selected. Ask for at most "
                f"{available}, or for a larger quota per label.",
                pointer="/budget",
                allowed={"ge": 1, "le": available},
            )

    @property
    def nats_criterion(self) -> str:
        """What the nats measure: ``infoloss`` for that rule, else ``infogain``."""
        return "infoloss" if self.question.rule == "infoloss" else "infogain"

    def picks(self, acquired: Sequence[int] = ()) -> Iterator[CoresetPick]:
        """Select, one row at a time.

        Args:
            acquired: Rows picked before, in order: an interrupted selection goes on as if it had not been.

        Yields:
            Picks after those, in order; it ends early when no row informs any query.
        """
        for step in self.steps(acquired):
            row = int(self._rows.rows[step.position])
            label = int(self._labels[step.position])
            yield CoresetPick(
                rank=step.rank,
                row=row,
                id=self.index.examples.id(row),
                label=label if label >= 0 else None,
                score=step.score,
                mean_nats=float(step.cumulative_nats.mean()),
            )

    def steps(self, acquired: Sequence[int] = ()) -> Iterator[ManyStep]:
        """Select, with what every step did to every query.

        Args:
            acquired: Rows picked before, in order.

        Yields:
            Steps; ``position`` is a place among the candidates.
        """
        question = self.question
        made = positions_in(self._rows.rows, torch.tensor(list(acquired), dtype=torch.int64)).tolist()
        if question.rule == "infoloss":
            yield from select_many_infoloss(
                self._posterior(),
                torch.arange(self.candidates),
                budget=question.budget,
                weighting=question.weighting,
                quotas=self._quotas,
                labels=self._labels,
                candidates=self._rows,
                max_table_bytes=question.max_table_bytes,
                table=self._table,
                products=row_products,
                acquired=made,
            )
            return
        yield from select_many(
            self.queries,
            self._rows,
            self.noise.variance,
            budget=question.budget,
            rule=question.rule,
            weighting=question.weighting,
            quotas=self._quotas,
            labels=self._labels,
            max_table_bytes=question.max_table_bytes,
            table=self._table,
            products=row_products,
            acquired=made,
        )

    def _table(self, rows: Candidates, num_queries: int) -> CovarianceTable:
        if rows is self._rows:
            return FusedTable(self.view, self._rows.rows, num_queries)
        return DenseTable(rows, num_queries)

    def _posterior(self) -> ManyPosterior | list[QueryPosterior]:
        # The queries given every comparable row.
        given = Spectra(self.index, _SPECTRUM_BYTES).posterior(self.view, self.label, self.noise.variance)
        if not given.is_kernel:
            return ManyPosterior.of_queries(given, self.queries, self._rows.sketches)
        crosses = self._rows.products(self.queries)
        return [
            given.of_query(query, cross, self._rows.sketches)
            for query, cross in zip(self.queries, crosses, strict=True)
        ]
