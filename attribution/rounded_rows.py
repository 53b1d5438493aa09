"""Rows of which a rounded copy is at hand that is cheap to multiply: 8-bit codes, and how far each is from its row."""

from dataclasses import dataclass
from typing import Protocol

from attribution.exact_sums import Array


@dataclass(frozen=True)
class RoundedProducts:
    """Products of rounded rows with a rounded vector.

    Attributes:
        values: φ̂_n · v̂ by place, to eight float64 roundings of ‖φ_n‖‖v̂‖, [c].
        vector: v̂, which was multiplied, [d].
    """

    values: Array
    vector: Array


class RoundedRows(Protocol):
    """A pool's rows φ_n with rounded copies φ̂_n.

    Attributes:
        norms: An upper bound of ‖φ_n‖ by place, measurement.
        distances: An upper bound of ‖φ_n − φ̂_n‖ by place, measurement.
        rounded_norms: ‖φ̂_n‖ by place, to eight float64 roundings, measurement.
    """

    @property
    def norms(self) -> Array:
        """Upper bounds of ‖φ_n‖, float64 [c]."""

    @property
    def distances(self) -> Array:
        """Upper bounds of ‖φ_n − φ̂_n‖, float64 [c]."""

    @property
    def rounded_norms(self) -> Array:
        """‖φ̂_n‖, float64 [c]."""

    def rounded_products(self, vector: Array) -> RoundedProducts:
        """Multiply all rounded rows with a vector, rounded too.

        Args:
            vector: float64 [d].

        Returns:
            The products, and what they are products with.
        """
