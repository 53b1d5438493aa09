"""What an open index answers: hits with their nats, the facts around them, exact scores. The fields of design.md §6."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class IndexReference:
    """Which index answered.

    Attributes:
        name: Its name.
        revision: Its revision; rows never change within one.
    """

    name: str
    revision: str


@dataclass(frozen=True)
class QueryFacts:
    """The query as the index sees it.

    Attributes:
        label: The class whose measurement is explained; None where the measurement has none.
        predicted_label: The model's prediction, if known.
        prior_variance: v(x_* | ∅), measurement².
        posterior_variance: v(x_* | selected set), measurement²; None before the selection.
    """

    label: int | None
    predicted_label: int | None
    prior_variance: float
    posterior_variance: float | None


@dataclass(frozen=True)
class Represents:
    """Candidates a hit stands for: not selected, with a kernel cosine above 0.95 with it.

    Attributes:
        count: How many.
        ids: The first of them by row, at most 20.
    """

    count: int
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Hit:
    """One selected example.

    Attributes:
        rank: Order of selection, from 1.
        row: Its row.
        id: Its external id.
        label: Its label; None where it has none.
        score: The rule's value at this pick, in ``score_unit``.
        covariance: c(x_*, n | state before the pick), signed, measurement².
        step_nats: Information of this pick given those before it.
        cumulative_nats: Information of all picks so far.
        represents: What it stands for.
    """

    rank: int
    row: int
    id: str
    label: int | None
    score: float
    covariance: float
    step_nats: float
    cumulative_nats: float
    represents: Represents


@dataclass(frozen=True)
class Information:
    """Nats of the selected set, against all that D knows.

    Attributes:
        infogain_nats: InfoGain of the selected set.
        infoloss_nats: InfoLoss of the selected set from D; None unless asked for.
        available_nats: InfoGain of all of D; None with a reason.
        fraction: infogain_nats / available_nats; None where that is not known or 0.
        available_reason: Why available_nats is None.
    """

    infogain_nats: float
    infoloss_nats: float | None
    available_nats: float | None
    fraction: float | None
    available_reason: str | None = None


@dataclass(frozen=True)
class SearchFacts:
    """How candidates were looked through.

    Attributes:
        engine: ``faiss`` or ``brute_force``; ``none`` where the method scans the stored rows and asks no index.
        factory: FAISS factory string, or None.
        strategy: ``certified`` or ``literal``; None where no index is asked.
        exact: Whether the picks equal those of a float64 scan of the stored rows.
        index_queries: Vectors compared with the whole pool: ±r sent to the index are two, a scan of its codes is one.
        rows_scored: Rows multiplied with something, by the index, in few bits or exactly.
        bytes_read: Bytes of sketches, codes and kernel columns read for it.
    """

    engine: str
    factory: str | None
    strategy: str | None
    exact: bool
    index_queries: int
    rows_scored: int
    bytes_read: int


@dataclass(frozen=True)
class Start:
    """What is known of an answer before its first step.

    Attributes:
        index: Which index answers.
        method: The rule.
        noise_variance: σ² in squared measurement units.
        relative_noise: The same in units of the mean squared norm of the comparable rows.
        query: The query, without its posterior variance.
        budget: How many examples will be selected at most.
        candidates: Size of the pool.
        nats_criterion: What step_nats and cumulative_nats are: ``infogain`` or ``infoloss``.
        score_unit: Unit of the hits' scores.
        warnings: What to beware of.
    """

    index: IndexReference
    method: str
    noise_variance: float
    relative_noise: float
    query: QueryFacts
    budget: int
    candidates: int
    nats_criterion: str
    score_unit: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The ordered subset that informs a query.

    Attributes:
        index: Which index answered.
        method: The rule.
        noise_variance: σ² in squared measurement units.
        relative_noise: The same in units of the mean squared norm of the comparable rows.
        query: The query.
        hits: The selected examples in order.
        nats_criterion: What step_nats and cumulative_nats are: ``infogain`` or ``infoloss``.
        score_unit: Unit of the hits' scores.
        information: Nats of the whole set.
        search: How candidates were looked through.
        stopped: ``budget``, ``uninformative``, ``min_step_nats`` or ``information_fraction``.
        warnings: What to beware of.
        timings_ms: Where the time went.
    """

    index: IndexReference
    method: str
    noise_variance: float
    relative_noise: float
    query: QueryFacts
    hits: tuple[Hit, ...]
    nats_criterion: str
    score_unit: str
    information: Information
    search: SearchFacts
    stopped: str
    warnings: tuple[str, ...]
    timings_ms: dict[str, float]


@dataclass(frozen=True)
class SetScores:
    """Exact nats of a whole set; None for a criterion that was not asked for.

    Attributes:
        infogain_nats: Its InfoGain.
        infoloss_nats: Its InfoLoss from D.
    """

    infogain_nats: float | None
    infoloss_nats: float | None


@dataclass(frozen=True)
class MemberScores:
    """Exact nats of one member alone; None for a criterion that was not asked for.

    Attributes:
        row: Its row.
        id: Its external id.
        infogain_nats: InfoGain of it alone.
        infoloss_nats: InfoLoss of it alone from D.
        scores: Values of other methods by name.
    """

    row: int
    id: str
    infogain_nats: float | None
    infoloss_nats: float | None
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Exact nats of a set the asker named, and of each member alone.

    Attributes:
        index: Which index answered.
        noise_variance: σ² in squared measurement units.
        relative_noise: The same in units of the mean squared norm of the comparable rows.
        set: Nats of the whole set.
        members: Nats of each member, in the order asked.
        warnings: What to beware of.
    """

    index: IndexReference
    noise_variance: float
    relative_noise: float
    set: SetScores
    members: tuple[MemberScores, ...]
    warnings: tuple[str, ...]
