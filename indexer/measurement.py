"""What is asked of the model: one scalar per example, whose gradient is the tangent feature.

A measurement says which views an index gets (one sketch per row and view), at which target each row is measured in a
view, and the scalar itself, written for one example so that torch.func can vectorise it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

NO_LABEL = -1
MEASUREMENTS = ("label_logit", "class_logit", "margin", "custom")


class MeasurementError(ValueError):
    """A measurement, a view or a target that does not exist for this model."""


class Measurement(Protocol):
    """One scalar per example.

    Attributes:
        name: ``label_logit``, ``class_logit``, ``margin`` or ``custom``.
        comparable: Which rows of a view may be compared: those of one ``label``, or ``all``.
    """

    @property
    def name(self) -> str:
        """Name in the manifest."""
        ...

    @property
    def comparable(self) -> Literal["label", "all"]:
        """Which rows of a view have comparable sketches."""
        ...

    def views(self, num_classes: int) -> list[str]:
        """Names of the views an index of this measurement has.

        Args:
            num_classes: Number of outputs of the model.

        Returns:
            The names, in order.

        Raises:
            MeasurementError: If the model has no such outputs.
        """
        ...

    def targets(self, view: str, labels: Tensor) -> Tensor:
        """Target at which each row is measured in a view.

        Args:
            view: One of ``views``.
            labels: The rows' own (or the query's chosen) labels, shape [b].

        Returns:
            Shape [b]: the labels, or the view's class for every row.

        Raises:
            MeasurementError: If there is no such view.
        """
        ...

    def value(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The scalar of one example.

        Args:
            outputs: What the recipe's ``outputs`` gives for it: logits [C], or a scalar.
            target: Its target, shape [].

        Returns:
            Shape [].
        """
        ...


class LabelLogit:
    """The logit of each row's own label; rows are comparable within a label only."""

    name = "label_logit"
    comparable: Literal["label", "all"] = "label"

    def views(self, num_classes: int) -> list[str]:
        """The one view, ``own``; see `Measurement.views`.

        Args:
            num_classes: Number of outputs of the model.

        Returns:
            ``["own"]``.
        """
        return ["own"]

    def targets(self, view: str, labels: Tensor) -> Tensor:
        """The labels themselves; see `Measurement.targets`.

        Args:
            view: ``own``.
            labels: Shape [b].

        Returns:
            The labels.
        """
        _check_view(self.name, view, ["own"])
        return labels

    def value(self, outputs: Tensor, target: Tensor) -> Tensor:
        """z_y; see `Measurement.value`.

        Args:
            outputs: Logits z, shape [C].
            target: y.

        Returns:
            Shape [].
        """
        return _at(outputs, target)


class ClassLogit:
    """One view per class c: every row's logit of c, so that all rows compare whatever their label."""

    name = "class_logit"
    comparable: Literal["label", "all"] = "all"

    def __init__(self, classes: Sequence[int] | None = None) -> None:
        if classes is not None and (not classes or len(set(classes)) != len(classes) or min(classes) < 0):
            raise MeasurementError(f"the classes of class_logit must be different numbers from 0, got {list(classes)}.")
        self.classes = None if classes is None else sorted(classes)

    def views(self, num_classes: int) -> list[str]:
        """One view per class, named by its number; see `Measurement.views`.

        Args:
            num_classes: Number of outputs of the model.

        Returns:
            The names.

        Raises:
            MeasurementError: If a chosen class is not an output of the model.
        """
        classes = list(range(num_classes)) if self.classes is None else self.classes
        if classes[-1] >= num_classes:
            raise MeasurementError(
                f"view {classes[-1]} was asked for, but the model has outputs 0 to {num_classes - 1}."
            )
        return [str(number) for number in classes]

    def targets(self, view: str, labels: Tensor) -> Tensor:
        """The view's class for every row; see `Measurement.targets`.

        Args:
            view: The number of a class.
            labels: Shape [b]; only the shape and device matter.

        Returns:
            Shape [b], int64.

        Raises:
            MeasurementError: If the view is not a class number, or was left out by ``classes``.
        """
        if not view.isdecimal() or (self.classes is not None and int(view) not in self.classes):
            allowed = "the number of a class" if self.classes is None else f"one of {self.classes}"
            raise MeasurementError(f"class_logit has no view {view!r}; a view is {allowed}.")
        return torch.full((labels.shape[0],), int(view), dtype=torch.int64, device=labels.device)

    def value(self, outputs: Tensor, target: Tensor) -> Tensor:
        """z_c; see `Measurement.value`.

        Args:
            outputs: Logits z, shape [C].
            target: c.

        Returns:
            Shape [].
        """
        return _at(outputs, target)


class Margin:
    """log(p_y / (1 − p_y)), the log-odds of the label: TRAK's measurement; all rows compare."""

    name = "margin"
    comparable: Literal["label", "all"] = "all"

    def views(self, num_classes: int) -> list[str]:
        """The one view, ``margin``; see `Measurement.views`.

        Args:
            num_classes: Number of outputs of the model.

        Returns:
            ``["margin"]``.

        Raises:
            MeasurementError: If there is only one output: its probability is always 1.
        """
        if num_classes < 2:
            raise MeasurementError("the margin needs at least two outputs; name a measurement function of your own.")
        return ["margin"]

    def targets(self, view: str, labels: Tensor) -> Tensor:
        """The labels themselves; see `Measurement.targets`.

        Args:
            view: ``margin``.
            labels: Shape [b].

        Returns:
            The labels.
        """
        _check_view(self.name, view, ["margin"])
        return labels

    def value(self, outputs: Tensor, target: Tensor) -> Tensor:
        """z_y − log Σ_{c ≠ y} exp z_c, which is log(p_y / (1 − p_y)) without cancellation; see `Measurement.value`.

        Args:
            outputs: Logits z, shape [C].
            target: y.

        Returns:
            Shape [].
        """
        is_target = torch.arange(outputs.shape[0], device=outputs.device) == target
        return _at(outputs, target) - outputs.masked_fill(is_target, -torch.inf).logsumexp(0)


class Custom:
    """The user's own scalar, for regression or a model with several outputs."""

    name = "custom"
    comparable: Literal["label", "all"] = "all"

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def views(self, num_classes: int) -> list[str]:
        """The one view, ``custom``; see `Measurement.views`.

        Args:
            num_classes: Number of outputs of the model.

        Returns:
            ``["custom"]``.
        """
        return ["custom"]

    def targets(self, view: str, labels: Tensor) -> Tensor:
        """The labels themselves; see `Measurement.targets`.

        Args:
            view: ``custom``.
            labels: Shape [b].

        Returns:
            The labels.
        """
        _check_view(self.name, view, ["custom"])
        return labels

    def value(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The user's function of one example's outputs and label; see `Measurement.value`.

        Args:
            outputs: What the recipe's ``outputs`` gives for one example.
            target: Its label.

        Returns:
            Shape [].

        Raises:
            MeasurementError: If the function gives no scalar.
        """
        value = self.function(outputs, target)
        if value.ndim != 0:
            raise MeasurementError(
                f"the recipe's measurement must give one scalar per example, got shape {list(value.shape)}."
            )
        return value


def make_measurement(
    name: str,
    *,
    classes: Sequence[int] | None = None,
    function: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Measurement:
    """Measurement by name.

    Args:
        name: One of ``MEASUREMENTS``.
        classes: For class_logit: which classes get a view; None means all.
        function: For custom: (outputs, label) of one example to a scalar.

    Returns:
        The measurement.

    Raises:
        MeasurementError: If there is no such measurement, or an argument does not belong to it or is missing.
    """
    if name not in MEASUREMENTS:
        raise MeasurementError(f"there is no measurement {name!r}; choose from {', '.join(MEASUREMENTS)}.")
    if classes is not None and name != "class_logit":
        raise MeasurementError(f"views can be chosen for class_logit only; {name} has one view.")
    if (function is None) == (name == "custom"):
        raise MeasurementError(
            "the custom measurement needs the recipe's measurement function."
            if function is None
            else f"a measurement function was given, but the measurement is {name}; ask for custom."
        )
    if name == "label_logit":
        return LabelLogit()
    if name == "class_logit":
        return ClassLogit(classes)
    if name == "margin":
        return Margin()
    assert function is not None
    return Custom(function)


def check_targets(measurement: Measurement, targets: Tensor, num_outputs: int) -> None:
    """Refuse targets that are not outputs of the model, before a gather meets them.

    Args:
        measurement: Custom measurements are left to themselves.
        targets: Shape [b].
        num_outputs: C.

    Raises:
        MeasurementError: If a target is not an integer from 0 to C − 1.
    """
    if measurement.name == "custom" or targets.numel() == 0:
        return
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise MeasurementError(f"{measurement.name} needs integer labels, got {targets.dtype}.")
    wrong = targets[(targets < 0) | (targets >= num_outputs)]
    if wrong.numel():
        raise MeasurementError(
            f"{measurement.name} was asked at label {int(wrong[0])}, but the model has outputs 0 to {num_outputs - 1}."
        )


def _at(outputs: Tensor, target: Tensor) -> Tensor:
    # gather, not outputs[target]: indexing with a tensor would read its value, which vmap forbids
    return outputs.gather(0, target.reshape(1)).squeeze(0)


def _check_view(name: str, view: str, views: list[str]) -> None:
    if view not in views:
        raise MeasurementError(f"{name} has no view {view!r}; its view is {views[0]!r}.")
