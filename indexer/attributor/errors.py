"""Everything a question can get wrong, one class each, with a stable code, where it stands and what is allowed.

::

    QuestionError(ValueError)
    ├ UnknownRowError  UnknownIdError  UnknownLabelError  UnknownViewError  UnknownMetadataError
    ├ TargetNotStoredError       no sketch of this row at this target
    ├ NoTrueLabelError           target "true" of something without a label
    ├ NoLabelError               a sketch whose label must be named
    ├ LabelMismatchError         rows, or a target, that are not comparable with the query
    ├ WrongDimensionError  NotFiniteError  ZeroQueryError  NormRangeError
    ├ NoiseConflictError  NoiseRangeError  NoNoiseUnitError  NoiseTooSmallError
    ├ BudgetRangeError
    │ └ BudgetTooLargeError
    ├ StopRangeError             min_step_nats or information_fraction out of range
    ├ EmptyPoolError
    ├ TooManyGroupsError         a column with more values than groups are told apart
    ├ DuplicateIdError           an id listed twice where a set is meant
    ├ OptionError                a criterion, condition or strategy that does not exist
    ├ MethodUnavailableError     a method that does not exist, or that this index cannot serve
    ├ NoRepresentationError      RepSim asked of a query without penultimate features
    └ MissingSpectrumError       needs a matrix that is not stored and too large to compute while a question waits

Catch QuestionError for all of them. ``pointer`` is a JSON pointer into the request of design.md section 6.
"""

from typing import Any, ClassVar


class QuestionError(ValueError):
    """A question that cannot be answered as asked.

    Args:
        message: Which value is wrong, what is allowed, what to do.
        pointer: JSON pointer to the value in an attribution request.
        allowed: What would have been accepted, as JSON.

    Attributes:
        code: Stable name of the mistake.
        pointer: JSON pointer to the value in an attribution request.
        allowed: What would have been accepted, as JSON; None where it cannot be listed.
    """

    code: ClassVar[str] = "invalid_question"

    def __init__(self, message: str, *, pointer: str, allowed: Any = None) -> None:
        super().__init__(message)
        self.pointer = pointer
        self.allowed = allowed


class UnknownRowError(QuestionError):
    """There is no such row."""

    code = "unknown_row"


class UnknownIdError(QuestionError):
    """No example has this id."""

    code = "unknown_id"


class UnknownLabelError(QuestionError):
    """No training row, or no view, has this label."""

    code = "unknown_label"


class UnknownViewError(QuestionError):
    """The index has no such view."""

    code = "unknown_view"


class UnknownMetadataError(QuestionError):
    """The examples have no such metadata, or not of this type."""

    code = "unknown_metadata"


class TargetNotStoredError(QuestionError):
    """The row has no stored sketch at this target."""

    code = "target_not_stored"


class NoTrueLabelError(QuestionError):
    """The true label was asked for of something that has none."""

    code = "no_true_label"


class NoLabelError(QuestionError):
    """The sketch's label must be named on this index."""

    code = "no_label"


class LabelMismatchError(QuestionError):
    """Rows of another label, or another target, cannot be compared with this query."""

    code = "label_mismatch"


class WrongDimensionError(QuestionError):
    """The sketch has another dimension than the index."""

    code = "wrong_dimension"


class NotFiniteError(QuestionError):
    """The sketch holds NaN or an infinity."""

    code = "not_finite"


class ZeroQueryError(QuestionError):
    """The query's sketch is zero: it has no variance that anything could explain."""

    code = "zero_query"


class NormRangeError(QuestionError):
    """The sketch is so large or so small that its square leaves the range of float64."""

    code = "norm_out_of_range"


class NoiseConflictError(QuestionError):
    """Both noise_variance and relative_noise were given."""

    code = "noise_conflict"


class NoiseRangeError(QuestionError):
    """The noise is not a positive finite number."""

    code = "noise_range"


class NoiseTooSmallError(QuestionError):
    """Rounding in float64 is as large as the noise; ``allowed`` says which noise works, in the unit that was asked."""

    code = "noise_too_small"


class NoNoiseUnitError(QuestionError):
    """All comparable rows are zero, so relative noise has no unit and nothing can inform the query."""

    code = "no_noise_unit"


class BudgetRangeError(QuestionError):
    """The budget is not a whole number from 1."""

    code = "budget_range"


class BudgetTooLargeError(BudgetRangeError):
    """The budget exceeds the pool."""

    code = "budget_too_large"


class StopRangeError(QuestionError):
    """A stopping threshold is out of its range."""

    code = "stop_range"


class EmptyPoolError(QuestionError):
    """No comparable row passes the filter."""

    code = "empty_pool"


class TooManyGroupsError(QuestionError):
    """The column to group by has more values than groups are told apart in one question."""

    code = "too_many_groups"


class DuplicateIdError(QuestionError):
    """An id is listed twice where a set is meant."""

    code = "duplicate_id"


class OptionError(QuestionError):
    """A condition, strategy or criterion that does not exist."""

    code = "unknown_option"


class MethodUnavailableError(QuestionError):
    """The method does not exist, or this index lacks what it needs."""

    code = "method_unavailable"


class NoRepresentationError(QuestionError):
    """RepSim was asked of a query whose penultimate features are not known."""

    code = "no_representation"


class MissingSpectrumError(QuestionError):
    """The answer needs the Gram matrix of the conditioning set, which is neither stored nor small enough to compute."""

    code = "missing_spectrum"
