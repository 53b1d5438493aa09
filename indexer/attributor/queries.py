"""Turning what a request names — a stored query, a training example, a sketch — into a query on one view."""

import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from indexer.attributor.errors import (
    LabelMismatchError,
    NoLabelError,
    NormRangeError,
    NotFiniteError,
    NoTrueLabelError,
    TargetNotStoredError,
    UnknownIdError,
    UnknownLabelError,
    UnknownRowError,
    WrongDimensionError,
    ZeroQueryError,
)
from indexer.attributor.questions import QuerySketch, Target
from sketchstore.errors import UnknownIdError as StoreUnknownIdError
from sketchstore.manifest import NO_LABEL
from sketchstore.reader import Index

TARGET = "/target/label"
REPRESENTATIONS = "representations"
"""The column of penultimate features."""
SMALLEST_NORM = 1e-150
"""Below it, the square of a sketch falls among float64's subnormal numbers and loses its digits."""


def resolve_query_row(index: Index, row: int, target: Target | None = None) -> QuerySketch:
    """Take a query of the set sketched at build.

    Args:
        index: The index.
        row: Its row in the query set.
        target: The class to explain: "predicted", "true" or a label. None: the predicted one.

    Returns:
        The query.

    Raises:
        UnknownRowError: If there is no such row, or no query set.
        TargetNotStoredError: If no sketch of it is stored for this target.
    """
    if index.queries is None:
        raise UnknownRowError(
            f"index {index.name!r} has no stored queries. Ask with a train_id, an example or a sketch.",
            pointer="/query/row",
            allowed=[],
        )
    if isinstance(row, bool) or not 0 <= row < index.queries.count:
        raise UnknownRowError(
            f"query row {row} does not exist; the query rows are 0 to {index.queries.count - 1}.",
            pointer="/query/row",
            allowed={"ge": 0, "le": index.queries.count - 1},
        )
    predicted, true = index.queries.predicted_label(row), index.queries.label(row)
    if _has_classes(index):
        label = _class_of_target(target, predicted, true, "the query")
        view = _view_of_class(index, label)
        wanted = label
    else:
        _refuse_target(target)
        label, view, wanted = None, _only_view(index), NO_LABEL
    stored = index.queries.targets(row, view) if view in index.queries.views else []
    if wanted not in stored:
        raise TargetNotStoredError(
            f"query row {row} has no stored sketch for target {label}; stored are {stored}. Ask for one of these, or "
            "send the query as an example.",
            pointer=TARGET,
            allowed=stored,
        )
    sketch = index.queries.sketch(row, view, wanted)
    features = _representation(index, "query", row)
    return _checked(index, QuerySketch(sketch, view, label, predicted, representation=features), "/query/row")


def resolve_train_row(
    index: Index, row: int, target: Target | None = None, *, include_self: bool = False, pointer: str = "/query/row"
) -> QuerySketch:
    """Take a training example as the query.

    Args:
        index: The index.
        row: Its row.
        target: The class to explain: "predicted", "true" or a label. None: the class its stored sketch is of; with
            one view per class, the predicted one.
        include_self: Whether the example stays among the candidates and in D.
        pointer: Where it stands in the request.

    Returns:
        The query.

    Raises:
        UnknownRowError: If there is no such row.
        LabelMismatchError: If its stored sketch is of another class.
    """
    if isinstance(row, bool) or not 0 <= row < index.num_rows:
        raise UnknownRowError(
            f"training row {row} does not exist; the rows are 0 to {index.num_rows - 1}.",
            pointer=pointer,
            allowed={"ge": 0, "le": index.num_rows - 1},
        )
    true = int(index.labels[row])
    predicted = None if index.predicted_labels is None else int(index.predicted_labels[row])
    label: int | None = None
    if not _has_classes(index):
        _refuse_target(target)
        view = _only_view(index)
    elif _one_view_per_class(index):
        label = _class_of_target(target, predicted, true, "the example")
        view = _view_of_class(index, label)
    else:
        label = true if target is None else _class_of_target(target, predicted, true, "the example")
        view = _only_view(index)
        if label != true:
            raise LabelMismatchError(
                f"training row {row} has label {true}, and its stored sketch is of that class, not of {label}. Ask "
                "for that class, or send the example's content.",
                pointer=TARGET,
                allowed=[true],
            )
    sketch = index.view(view).sketches(torch.tensor([row]))[0]
    excluded = () if include_self else (row,)
    features = _representation(index, "train", row)
    return _checked(index, QuerySketch(sketch, view, label, predicted, excluded, features), pointer)


def resolve_train_id(index: Index, id: str, target: Target | None = None, *, include_self: bool = False) -> QuerySketch:
    """Take a training example as the query, by its external id.

    Args:
        index: The index.
        id: Its id.
        target: As in :func:`resolve_train_row`.
        include_self: Whether the example stays among the candidates and in D.

    Returns:
        The query.

    Raises:
        UnknownIdError: If no training example has this id.
    """
    try:
        row = index.examples.row(id)
    except StoreUnknownIdError as error:
        raise UnknownIdError(str(error), pointer="/query/id", allowed=error.allowed) from error
    return resolve_train_row(index, row, target, include_self=include_self, pointer="/query/id")


def resolve_sketch(
    index: Index, values: Sequence[float] | Tensor, label: int | None = None, target: Target | None = None
) -> QuerySketch:
    """Take a sketch made elsewhere by this index's sketch specification.

    Args:
        index: The index.
        values: The sketch in measurement units, d numbers.
        label: The class whose measurement was sketched.
        target: A label, which must be that class; None or a name: that class.

    Returns:
        The query.

    Raises:
        NoLabelError: If the index needs the class and none is given.
        LabelMismatchError: If label and target are different classes.
        WrongDimensionError: If there are not d values.
        NotFiniteError: If one of them is NaN or infinite.
        ZeroQueryError: If all of them are zero.
        NormRangeError: If the square of its norm, or of its product with a row, leaves float64.
    """
    wanted = target if isinstance(target, int) and not isinstance(target, bool) else None
    if label is not None and wanted is not None and label != wanted:
        raise LabelMismatchError(
            f"the sketch is of label {label}, the target is label {wanted}. Give the sketch of the target.",
            pointer=TARGET,
            allowed=[label],
        )
    label = wanted if label is None else label
    if not _has_classes(index):
        _refuse_target(label, "/query/label")
        _refuse_target(target)
        view = _only_view(index)
    elif label is None and index.view(first := next(iter(index.views))).comparable == "all" and len(index.views) == 1:
        view = first  # every row of the only view is comparable, whatever class the query is of
        label = int(view) if view.isdigit() else None
    elif label is None:
        raise NoLabelError(
            "the sketch's label is not given, and this index needs to know which class's measurement was sketched.",
            pointer="/query/label",
            allowed=_classes(index),
        )
    else:
        view = _view_of_class(index, label, "/query/label")
    sketch = torch.as_tensor(values, dtype=torch.float64)
    return _checked(index, QuerySketch(sketch, view, label), "/query/values")


def _representation(index: Index, split: str, row: int) -> Callable[[], Tensor | None]:
    # Reads a stored row's penultimate features when they are asked for: nobody else should wait for that file.
    def read() -> Tensor | None:
        if split == "train":
            return index.column(REPRESENTATIONS)[row].double() if REPRESENTATIONS in index.manifest.columns else None
        if index.queries is None or not index.queries.has_representations:
            return None
        return torch.from_numpy(np.array(index.queries.representations()[row], dtype=np.float64))

    return read


def check_query(index: Index, query: QuerySketch) -> None:
    """Refuse a query sketch that cannot meet the rows of an index.

    Args:
        index: The index.
        query: The query.

    Raises:
        WrongDimensionError: If it has another dimension.
        NotFiniteError: If it holds NaN or an infinity.
        ZeroQueryError: If it is zero.
        NormRangeError: If the square of its norm, or of its product with a row, leaves float64.
    """
    _checked(index, query, "/query")


def _checked(index: Index, query: QuerySketch, pointer: str) -> QuerySketch:
    shape = list(query.sketch.shape)
    if shape != [index.sketch_dim]:
        raise WrongDimensionError(
            f"the sketch has shape {shape}, this index has sketches of {index.sketch_dim} values.",
            pointer=pointer,
            allowed={"length": index.sketch_dim},
        )
    finite = torch.isfinite(query.sketch)
    if not bool(finite.all()):
        place = int((~finite).nonzero()[0])
        raise NotFiniteError(
            f"value {place} of the sketch is {float(query.sketch[place])}; every value must be finite.",
            pointer=f"{pointer}/{place}" if pointer == "/query/values" else pointer,
        )
    largest = float(query.sketch.abs().max())
    if largest == 0:
        raise ZeroQueryError(
            "the query's sketch is zero: without prior variance nothing can inform it. Choose another query or target.",
            pointer=pointer,
            allowed="a sketch with a value that is not zero",
        )
    # Scaled first, so that the norm itself does not overflow.
    norm = largest * float(torch.linalg.vector_norm(query.sketch / largest))
    most = _largest_norm(index, query.view, norm)
    if not SMALLEST_NORM <= norm <= most:
        raise NormRangeError(
            f"the query's sketch has norm {norm:.3g}: its square, or that of its product with a row, is outside the "
            "range of float64. Nats do not depend on the scale of a query: divide the sketch by a constant.",
            pointer=pointer,
            allowed={"norm": {"ge": SMALLEST_NORM, "le": most}},
        )
    return query


def _largest_norm(index: Index, view: str, norm: float) -> float:
    """Say up to which norm a query's scores, (φ_n·φ_*)² ≤ ‖φ_n‖²‖φ_*‖², stay within float64.

    Args:
        index: The index.
        view: The query's view.
        norm: The query's norm; the rows' norms are read only where it is large.

    Returns:
        A bound, two digits, rounded down.
    """
    row = 1.0
    if norm > math.sqrt(sys.float_info.max) / 1e41 and view in index.views:  # a float32 row's is below 3e38·√d
        row = max(1.0, math.sqrt(float(index.view(view).squared_norms.max())))
    return float(f"{0.9 * math.sqrt(sys.float_info.max) / row:.1e}")


def _has_classes(index: Index) -> bool:
    return index.manifest.measurement.name != "custom"


def _one_view_per_class(index: Index) -> bool:
    return index.manifest.measurement.name == "class_logit"


def _only_view(index: Index) -> str:
    return next(iter(index.views))


def _classes(index: Index) -> list[int]:
    if _one_view_per_class(index):
        return sorted(int(name) for name in index.views)
    return sorted(int(name) for name in index.manifest.labels.counts)


def _view_of_class(index: Index, label: int, pointer: str = TARGET) -> str:
    """Name the view that holds measurements of a class.

    Args:
        index: The index.
        label: The class.
        pointer: Where it stands in the request.

    Returns:
        The view.

    Raises:
        UnknownLabelError: If there is none.
    """
    if not _one_view_per_class(index):
        view = _only_view(index)
        if index.view(view).comparable == "all" or label in _classes(index):
            return view
    elif str(label) in index.views:
        return str(label)
    raise UnknownLabelError(
        f"index {index.name!r} has nothing to compare with label {label}.", pointer=pointer, allowed=_classes(index)
    )


def _class_of_target(target: Target | None, predicted: int | None, true: int, whose: str) -> int:
    if target == "true":
        if true == NO_LABEL:
            raise NoTrueLabelError(
                f"{whose} has no true label. Ask for the predicted one, or name a label.",
                pointer=TARGET,
                allowed=["predicted"] if predicted is not None else None,
            )
        return true
    if target is None or target == "predicted":
        if predicted is None or predicted == NO_LABEL:
            raise NoLabelError(
                f"no prediction is stored for {whose}. Ask for the true label, or name one.",
                pointer=TARGET,
                allowed=["true"] if true != NO_LABEL else None,
            )
        return predicted
    if isinstance(target, bool) or not isinstance(target, int):
        raise UnknownLabelError(
            f"target {target!r} is none; a target is predicted, true, or a label.",
            pointer=TARGET,
            allowed=["predicted", "true", "a whole number from 0"],
        )
    return target


def _refuse_target(target: Target | None, pointer: str = TARGET) -> None:
    if isinstance(target, int) or target == "true":  # "predicted" is what the measurement is of anyway
        wanted = "the true label" if target == "true" else f"label {target}"
        raise UnknownLabelError(
            f"{wanted} was asked for, but this index's measurement is not of a class. Leave it out.",
            pointer=pointer,
            allowed=[],
        )
