"""Every error the attribution mathematics raises, one class per rule that an input can break.

::

    AttributionError
    ├ ShapeError(ValueError)               dimensions that do not fit together
    ├ NoiseVarianceError(ValueError)       σ² that is not a positive finite number
    ├ BudgetError(ValueError)              a budget below 1 or above what can be selected
    ├ ZeroQueryError(ValueError)           a query sketch of zeros: it has no variance to explain
    ├ NotFiniteError(ValueError)           NaN or infinity in a sketch
    ├ DependentQueriesError(ValueError)    queries whose joint entropy is −∞
    ├ UnknownOptionError(ValueError)       a rule, strategy or weighting that does not exist
    ├ TableSizeError(ValueError)           more queries × candidates than memory is allowed for
    └ NotPositiveDefiniteError             a factorisation that rounding defeats at this σ²
"""


class AttributionError(Exception):
    """Base of all errors raised by ``attribution``."""


class ShapeError(AttributionError, ValueError):
    """Two arrays have dimensions that do not fit together."""


class NoiseVarianceError(AttributionError, ValueError):
    """The noise variance σ² is not a positive finite number."""


class BudgetError(AttributionError, ValueError):
    """The budget is below 1 or exceeds what can be selected."""


class ZeroQueryError(AttributionError, ValueError):
    """The query's sketch is zero, so its prior variance is zero and no example can inform it."""


class NotFiniteError(AttributionError, ValueError):
    """A sketch contains NaN or infinity."""


class DependentQueriesError(AttributionError, ValueError):
    """Queries are linearly dependent, so their joint entropy is −∞ and no joint selection can be ranked."""


class UnknownOptionError(AttributionError, ValueError):
    """A rule, strategy or weighting was named that does not exist."""


class TableSizeError(AttributionError, ValueError):
    """The table of covariances between candidates and queries would exceed its memory limit."""


class NotPositiveDefiniteError(AttributionError):
    """A covariance lost positive definiteness to rounding; the message names the smallest σ² that would work.

    Attributes:
        smallest_noise_variance: A noise variance at which the same computation succeeds.
    """

    def __init__(self, message: str, smallest_noise_variance: float) -> None:
        super().__init__(message)
        self.smallest_noise_variance = smallest_noise_variance
