"""The type that tangent features are computed in: float32, or a shorter one that a GPU multiplies faster.

With bfloat16 or float16, the model's passes run under torch.autocast and every slab of gradients is rounded before the
sketch multiplies it. Sums are float32 throughout, and a build measures what the rounding does (`distortion.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

ComputeDtype = Literal["float32", "bfloat16", "float16"]
COMPUTE_DTYPES: tuple[ComputeDtype, ...] = get_args(ComputeDtype)

_TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """Rounds what a featuriser computes.

    Attributes:
        dtype: The type.
    """

    def __init__(self, dtype: ComputeDtype, device_type: str) -> None:
        self.dtype = dtype
        self._torch = _TORCH[dtype]
        self._device_type = device_type
        self._full = False

    @contextmanager
    def full(self) -> Iterator[None]:
        """Compute in float32 within the block: for probes and exact kernels.

        Yields:
            Nothing.
        """
        before, self._full = self._full, True
        try:
            yield
        finally:
            self._full = before

    def call(self, call: Callable[[nn.Module, Any], Any]) -> Callable[[nn.Module, Any], Any]:
        """Wrap a recipe's call so that the model runs in this type.

        Args:
            call: The recipe's ``call(model, inputs)``.

        Returns:
            The same, under autocast where the type is a short one; its backward pass follows it.
        """
        if self.dtype == "float32":
            return call

        def cast_call(model: nn.Module, inputs: Any) -> Any:
            with torch.autocast(self._device_type, self._torch, enabled=not self._full):
                return call(model, inputs)

        return cast_call

    def rounded(self, gradients: Tensor) -> Tensor:
        """Round gradients to this type; they stay float32 tensors, so that their sums do.

        float16 has few exponents: every row is scaled by a power of two first, so that its largest entry neither
        overflows nor drags the others below the smallest number.

        Args:
            gradients: float32 [b, p].

        Returns:
            float32 [b, p] of numbers that the type can hold, up to a power of two for each row of float16.
        """
        if self.dtype == "float32" or self._full:
            return gradients
        if self.dtype == "bfloat16":
            return gradients.to(self._torch).float()
        largest = gradients.abs().amax(dim=1, keepdim=True) if gradients.shape[1] else gradients[:, :1]
        scale = torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent)
        usable = torch.isfinite(largest) & torch.isfinite(scale) & (scale > 0)
        scale = torch.where(usable, scale, torch.ones_like(scale))
        return (gradients * scale).to(self._torch).float() / scale
