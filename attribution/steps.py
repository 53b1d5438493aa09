"""What a greedy selection yields: one step per pick, for one query or for many."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One pick of a greedy selection for one query.

    Attributes:
        rank: Order of selection, from 1.
        position: Which candidate: its position among the candidates, or its row where rows were searched.
        score: What the rule maximised; measurement⁴ for approximate InfoGain, measurement² for the exact rules.
        covariance: c(x_*, n | state before the pick), signed, measurement².
        query_variance: Variance of the query's latent after the pick, measurement².
        step_nats: Information of this pick given those before it.
        cumulative_nats: Information of all picks so far. InfoGain, except for the InfoLoss rule: InfoLoss.
        index_queries: Vectors compared with the whole pool so far, by the search (r and −r are two) or by a scan of
            codes; 0 where neither is used.
        rows_scored: Candidate sketches multiplied so far, by the search or by a look of our own.
        bytes_read: Bytes of sketches, codes and kernel columns read for it so far.
        exact: Whether the pick equals that of a float64 scan of all candidates.
    """

    rank: int
    position: int
    score: float
    covariance: float
    query_variance: float
    step_nats: float
    cumulative_nats: float
    index_queries: int = 0
    rows_scored: int = 0
    bytes_read: int = 0
    exact: bool = True


@dataclass(frozen=True)
class ManyStep:
    """One pick of a greedy selection for several queries at once.

    Attributes:
        rank: Order of selection, from 1.
        position: Position among the candidates.
        score: What the rule maximised. Not nats; sums over queries can exceed 1.
        covariances: Covariance of each query with the pick before it was made, shape [q], measurement².
        query_variances: Variance of each query's latent after the pick, shape [q], measurement².
        cumulative_nats: Information of all picks so far about each query, shape [q]; InfoLoss for the InfoLoss rule,
            InfoGain otherwise.
    """

    rank: int
    position: int
    score: float
    covariances: Float[Tensor, " q"]
    query_variances: Float[Tensor, " q"]
    cumulative_nats: Float[Tensor, " q"]
