"""Which modules of a model hold the chosen parameters, and which of these parameters hooks can serve."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from indexer.layers.kinds import MatrixKind, matrix_kind
from indexer.layers.norms import ScaleAndShift, norm_kind
from indexer.parameters import Parameter, ParameterList


@dataclass(frozen=True)
class HookedModule:
    """A module that a hook watches.

    Attributes:
        name: Dotted name.
        module: The module.
        kind: How its gradients follow from its input and the gradient at its output.
        weight: Its weight's place in the parameter list, None if not chosen.
        bias: Its bias's place, None if not chosen.
    """

    name: str
    module: nn.Module
    kind: MatrixKind | ScaleAndShift
    weight: Parameter | None
    bias: Parameter | None

    @property
    def places(self) -> list[Parameter]:
        """The chosen parameters."""
        return [place for place in (self.weight, self.bias) if place is not None]


def hooked_modules(model: nn.Module, parameters: ParameterList) -> tuple[list[HookedModule], dict[str, str]]:
    """Find the modules that serve chosen parameters, as far as the model's structure tells.

    A parameter that several modules hold is served if all of them can be: its gradient is their sum. How a module is
    used shows only when it runs.

    Args:
        model: The model.
        parameters: The chosen parameters.

    Returns:
        The modules, and the name of each parameter that hooks cannot serve to the reason.
    """
    chosen = {parameter.name: parameter for parameter in parameters}
    places = {id(held): chosen[name] for name, held in model.named_parameters() if name in chosen}
    found: list[HookedModule] = []
    refused: dict[str, str] = {}
    for name, module in model.named_modules():
        own = {leaf: places[id(held)] for leaf, held in module._parameters.items() if id(held) in places}
        if not own:
            continue
        kind = None if _is_changed(module) else matrix_kind(module) or norm_kind(module)
        served = () if kind is None else ("weight", "bias")
        for leaf, place in own.items():
            if leaf not in served:
                changed = " with a hook or forward() of its own" if _is_changed(module) else ""
                refused[place.name] = (
                    f"belongs to a {type(module).__name__}{changed}, whose gradients hooks do not know"
                )
        if kind is not None:
            found.append(HookedModule(name, module, kind, own.get("weight"), own.get("bias")))
    return found, refused


def _is_changed(module: nn.Module) -> bool:
    # Somebody's hook, or a forward() of this one module, may give another output than its class does.
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return "forward" in vars(module) or any(not _is_ours(hook) for hook in hooks)


def _is_ours(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).partition(".")[0] == "indexer"


def without(modules: list[HookedModule], refused: set[str]) -> list[HookedModule]:
    """The modules without some parameters; a module that has none left is dropped.

    Args:
        modules: The modules.
        refused: Names of the parameters.

    Returns:
        The modules that remain.
    """
    kept = []
    for entry in modules:
        weight, bias = (
            None if place is None or place.name in refused else place for place in (entry.weight, entry.bias)
        )
        if weight is not None or bias is not None:
            kept.append(HookedModule(entry.name, entry.module, entry.kind, weight, bias))
    return kept
