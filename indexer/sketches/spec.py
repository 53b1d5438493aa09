"""Which random matrix R takes tangent features to sketches: the few values that an index directory writes down.

Two sketches may be compared only if their specs are equal, number of parameters included; everything else about a
sketch (blocks, threads, devices) is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

Family = Literal["identity", "rademacher", "gaussian", "sjlt", "kronecker"]

FAMILIES: tuple[Family, ...] = get_args(Family)
DEFAULT_BUCKETS = 4
"""Signed buckets per parameter of an sjlt sketch when its options name none."""


class SketchSpecError(ValueError):
    """A sketch was asked for that does not exist, or that does not fit the model."""


@dataclass(frozen=True)
class SketchSpec:
    """Distribution, dimension and seed of the sketching matrix R [d, P].

    Attributes:
        family: ``rademacher``, ``gaussian``, ``sjlt``, ``kronecker`` (random, E[RᵀR] = I) or ``identity`` (R = I,
            d = P).
        dim: d, the length of a sketch.
        seed: Key of the counter-based generator, 0 ≤ seed < 2⁶⁴. Ignored by ``identity``.
        options: Settings of the family: ``{"buckets": s}`` for sjlt, ``{"parts": […]}`` for kronecker
            (`kronecker_plan`), nothing for the others.
    """

    family: Family
    dim: int
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise SketchSpecError(f"there is no sketch family {self.family!r}; the families are {', '.join(FAMILIES)}.")
        numbers = self.options.items() if self.family != "kronecker" else ()
        for name, value in (("dim", self.dim), ("seed", self.seed), *numbers):
            if not isinstance(value, int) or isinstance(value, bool):
                raise SketchSpecError(f"{name} of a sketch must be an integer, got {value!r}.")
        if self.dim < 1:
            raise SketchSpecError(f"dim of a sketch must be at least 1, got {self.dim}.")
        if not 0 <= self.seed < 2**64:
            raise SketchSpecError(f"seed of a sketch must be from 0 to 2**64 - 1, got {self.seed}.")
        known = {"sjlt": {"buckets"}, "kronecker": {"parts"}}.get(self.family, set())
        unknown = sorted(set(self.options) - known)
        if unknown:
            allowed = ", ".join(sorted(known)) or "none"
            raise SketchSpecError(f"{self.family} sketches have no option {unknown[0]!r}; their options: {allowed}.")
        if self.family == "sjlt":
            buckets = self.options.get("buckets", DEFAULT_BUCKETS)
            if not 1 <= buckets <= self.dim or self.dim % buckets:
                raise SketchSpecError(
                    f"an sjlt sketch needs a number of buckets that divides dim {self.dim}, got {buckets}."
                )
            object.__setattr__(self, "options", {"buckets": buckets})
        elif self.family == "kronecker":
            if "parts" not in self.options:
                raise SketchSpecError("a kronecker sketch needs its parts; `plan_parts` divides a dimension into them.")
            object.__setattr__(self, "options", {"parts": list(self.options["parts"])})
        else:
            object.__setattr__(self, "options", {})

    def check_fits(self, num_parameters: int) -> None:
        """Refuse a dimension that cannot belong to a model with this many parameters.

        Args:
            num_parameters: P, the length of the tangent features.

        Raises:
            SketchSpecError: If P < 1, or the family is identity and d ≠ P.
        """
        if num_parameters < 1:
            raise SketchSpecError(f"a sketch needs at least one parameter, got {num_parameters}.")
        if self.family == "identity" and self.dim != num_parameters:
            raise SketchSpecError(
                f"an identity sketch has dim = number of parameters = {num_parameters}, got {self.dim}. "
                "Leave dim out, or choose a random family."
            )

    def as_manifest(self) -> dict[str, object]:
        """The four values as a manifest stores them.

        Returns:
            A JSON object with ``family``, ``dim``, ``seed`` and ``options``.
        """
        return {"family": self.family, "dim": self.dim, "seed": self.seed, "options": dict(self.options)}


def sketch_spec(
    family: str, dim: int | None, num_parameters: int, seed: int = 0, options: Mapping[str, Any] | None = None
) -> SketchSpec:
    """Spec from what a user types, where the dimension of an identity sketch follows from the model.

    Args:
        family: Name of the family.
        dim: d; None only for identity, which takes P.
        num_parameters: P, the length of the tangent features.
        seed: Key of the generator.
        options: Settings of the family.

    Returns:
        The spec, checked against ``num_parameters``.

    Raises:
        SketchSpecError: If a value is not allowed, or dim is missing for a random family.
    """
    if dim is None and family != "identity":
        raise SketchSpecError(f"a {family} sketch needs its dimension; 4096 is the paper's choice for images.")
    spec = SketchSpec(cast(Family, family), num_parameters if dim is None else dim, seed, options or {})
    spec.check_fits(num_parameters)
    return spec
