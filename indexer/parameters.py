"""Which parameters a tangent feature covers, in which order: the coordinates 0 … P − 1 that a sketch is keyed by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Literal

import torch
from torch import nn

from sketchstore.manifest import Sketch

Layers = Literal["linear", "all"]


class ParameterSelectionError(ValueError):
    """A choice of parameters that names nothing, or that does not fit the model."""


@dataclass(frozen=True)
class Parameter:
    """One parameter tensor and the coordinates it takes.

    Attributes:
        name: Dotted name in the model.
        shape: Its shape.
        offset: Coordinate of its first entry; the others follow in row-major order.
        ntk_scale: s, by which its tangent features are multiplied; 1 without NTK parameterisation.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    ntk_scale: float

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)


@dataclass(frozen=True)
class ParameterList:
    """The chosen parameters in the order of their coordinates.

    Attributes:
        parameters: In the order of the model's ``named_parameters``.
    """

    parameters: tuple[Parameter, ...]

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    @property
    def num_parameters(self) -> int:
        """P, the length of the tangent features."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def names(self) -> list[str]:
        """Their names, in order."""
        return [parameter.name for parameter in self.parameters]

    def as_manifest(self) -> list[dict[str, object]]:
        """The list as a manifest stores it.

        Returns:
            One JSON object per parameter: ``name``, ``shape``, ``ntk_scale``.
        """
        return [
            {"name": parameter.name, "shape": list(parameter.shape), "ntk_scale": parameter.ntk_scale}
            for parameter in self.parameters
        ]

    @staticmethod
    def of_entries(entries: Sequence[tuple[str, Sequence[int], float]]) -> ParameterList:
        """List from (name, shape, NTK scale) in order, as read from a manifest.

        Args:
            entries: One triple per parameter.

        Returns:
            The list, offsets filled in.

        Raises:
            ParameterSelectionError: If the list is empty or a name comes twice.
        """
        names = [name for name, _, _ in entries]
        if not entries or len(set(names)) != len(names):
            raise ParameterSelectionError("a parameter list needs at least one parameter, and each name once.")
        parameters, offset = [], 0
        for name, shape, scale in entries:
            parameter = Parameter(name, tuple(shape), offset, float(scale))
            parameters.append(parameter)
            offset += parameter.size
        return ParameterList(tuple(parameters))

    @staticmethod
    def of_sketch(sketch: Sketch) -> ParameterList:
        """List what a manifest, or the plan of a build, says that its sketch is of.

        Args:
            sketch: Its entry.

        Returns:
            The list.
        """
        return ParameterList.of_entries([(each.name, each.shape, each.ntk_scale) for each in sketch.parameters])

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that lacks one of these parameters or has it in another shape.

        Args:
            model: The model to be measured.

        Raises:
            ParameterSelectionError: If the model does not fit, with the first parameter that differs.
        """
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        for parameter in self.parameters:
            if parameter.name not in shapes:
                raise ParameterSelectionError(
                    f"the model has no parameter {parameter.name!r}; it has {_some(list(shapes))}."
                )
            if shapes[parameter.name] != parameter.shape:
                raise ParameterSelectionError(
                    f"parameter {parameter.name!r} has shape {list(shapes[parameter.name])} in the model, "
                    f"{list(parameter.shape)} in the parameter list."
                )


def is_linear(module: nn.Module) -> bool:
    """Say whether a module is a linear layer: nn.Linear or transformers' Conv1D, which stores the transposed weight.

    Args:
        module: The module.

    Returns:
        Whether it is one.
    """
    return isinstance(module, nn.Linear) or is_transposed_linear(module)


def is_transposed_linear(module: nn.Module) -> bool:
    """Say whether a module is transformers' Conv1D, the linear layer of GPT-2: z = a W + b with W of shape [in, out].

    Told by its name, so that a project without transformers never imports it.

    Args:
        module: The module.

    Returns:
        Whether it is one.
    """
    return any(
        (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D") for kind in type(module).__mro__
    )


def select_parameters(
    model: nn.Module,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    layers: Layers = "all",
    scales: Mapping[str, float] | None = None,
) -> ParameterList:
    """Choose parameters by the names of their modules.

    A glob matches a module and everything inside it, or a single parameter by its full name: ``encoder`` and
    ``encoder.*`` choose the same, ``*.bias`` chooses biases. Parameters that training left frozen are left out; in a
    model that is frozen altogether (set up for inference) the flag says nothing and is ignored.

    Args:
        model: The trained model.
        include: Globs to keep; none keeps everything.
        exclude: Globs to drop, after ``include``.
        layers: ``linear`` keeps only the weights and biases of linear layers (`is_linear`). Convolutions and
            embeddings are not.
        scales: NTK scale of each parameter (`ntk.ntk_scales`); None means 1 for all.

    Returns:
        The chosen parameters.

    Raises:
        ParameterSelectionError: If a glob matches nothing, a chosen parameter is complex, or nothing is left.
    """
    named = dict(model.named_parameters())
    for glob in (*include, *exclude):
        if not any(_matches(name, glob) for name in named):
            modules = sorted({name.rpartition(".")[0] for name in named} - {""})
            raise ParameterSelectionError(
                f"{glob!r} matches no module with parameters{_tied(model, glob)}; there are {_some(modules)}."
            )
    if isinstance(model, torch.jit.ScriptModule) and not isinstance(model, torch.jit.TracedModule):  # type: ignore[attr-defined]
        raise ParameterSelectionError(
            "the model is a torch.jit.script module, whose layers cannot be watched: let model() give the module that "
            "it was scripted from, with its state_dict()."
        )
    any_trained = any(parameter.requires_grad for parameter in named.values())
    entries = []
    for name, parameter in named.items():
        module = model.get_submodule(name.rpartition(".")[0])
        if (
            (parameter.requires_grad or not any_trained)
            and (layers == "all" or is_linear(module))
            and (not include or any(_matches(name, glob) for glob in include))
            and not any(_matches(name, glob) for glob in exclude)
        ):
            if parameter.is_complex():
                raise ParameterSelectionError(
                    f"parameter {name!r} is complex, and a tangent feature is a derivative by a real number: hold its "
                    "real and imaginary part as two parameters, or leave it out with --exclude."
                )
            if parameter.numel() == 0:  # of a layer without outputs: it has no coordinate
                continue
            scale = 1.0 if scales is None else scales[name]
            entries.append((name, tuple(parameter.shape), scale))
    if not entries:
        raise ParameterSelectionError(
            f"no parameter is left by include {list(include)}, exclude {list(exclude)} and layers {layers!r}; "
            f"the model has {_some(list(named))}."
        )
    return ParameterList.of_entries(entries)


def _matches(name: str, glob: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:length]), glob) for length in range(1, len(parts) + 1))


def _tied(model: nn.Module, glob: str) -> str:
    # A parameter that two modules share has the name that comes first; the other finds nothing.
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if _matches(name, glob):
            return f" of its own: {name} is {first[id(parameter)]} under another name"
    return ""


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown or "none"
