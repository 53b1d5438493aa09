"""Exact InfoGain for one query (Eq. 8): one product with the pool per step, no solve per candidate."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from attribution.acquired import gain_step
from attribution.candidates import Candidates
from attribution.checks import check_budget, check_query
from attribution.gain_system import GainSystem, KernelColumn
from attribution.pursuit import Pursuit
from attribution.rounded_pursuit import RoundedPursuit
from attribution.rounded_rows import RoundedRows
from attribution.steps import Step


def select_infogain(
    query: Float[Tensor, " d"],
    candidates: Candidates,
    noise_variance: float,
    *,
    budget: int,
    kernel_column: KernelColumn | None = None,
    rounded: RoundedRows | None = None,
) -> Iterator[Step]:
    r"""Select the examples that greedily narrow the model's belief about a query the most (Eq. 8).

    .. math:: a = \arg\max_n \frac{c(x_*, n \mid A)^2}{\sigma^2 + v(n \mid A)}

    and after the pick, for every candidate n (method.md section 4),

    .. math:: c_n \leftarrow c_n - \frac{c(n, a \mid A)\, c_a}{\sigma^2 + v_a}, \quad
        v_n \leftarrow v_n - \frac{c(n, a \mid A)^2}{\sigma^2 + v_a}

    Step gains may rise: information gain about one query's variance is not submodular.

    Args:
        query: Sketch of the query, shape [d].
        candidates: The rows that may be picked. Their fast products nominate, their stored sketches decide.
        noise_variance: σ² > 0, in squared units of the measurement.
        budget: How many examples to select, from 1 to ``candidates.count``.
        kernel_column: Gives K(n, a) of every candidate n for candidate a, float64, shape [c]: a column of a stored Gram
            matrix spares the step's product.
        rounded: Rounded copies of the candidates, which nominate at a fraction of the bytes; not used where
            ``kernel_column`` is given.

    Yields:
        One step per pick, ``position`` being its place among the candidates and ``score`` the variance it explains. It
        ends early when the best score is exactly 0.
    """
    check_query(query, candidates.dim)
    check_budget(budget, candidates.count)
    system = GainSystem(query.unsqueeze(0), candidates, noise_variance, budget, kernel_column=kernel_column)
    if rounded is None or kernel_column is not None:
        pursuit = Pursuit(system, budget)
    else:
        pursuit = RoundedPursuit(system, rounded)
    for _ in range(budget):
        choice = pursuit.choose()
        if choice is None:
            return
        variance_before = float(system.acquired.variances[0])
        pursuit.accept(choice.position)
        assert system.added is not None, "accept adds"
        yield gain_step(system.acquired, system.added, variance_before, position=choice.position, score=choice.score)
