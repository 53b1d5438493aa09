"""Rows that can be multiplied cheaply but not exactly: 8-bit codes, or whatever else knows how far off it is."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from attribution.exact_sums import Array

Places = npt.NDArray[np.int64]


class HeadRows(Protocol):
    """The part of a pool's rows that lies in k leading directions, cheap to multiply, and how much lies outside.

    Attributes:
        basis: B, orthonormal rows, [k, d].
        tails: Upper bound of ‖φ_n − BᵀBφ_n‖ by place, measurement.
        bytes_per_row: What one product reads.
    """

    @property
    def basis(self) -> Array:
        """The directions, float64 [k, d]."""

    @property
    def tails(self) -> Array:
        """Upper bounds of the tails' lengths, float64 [c]."""

    @property
    def bytes_per_row(self) -> int:
        """Bytes read for one product."""

    def project(self, vector: Array) -> Array:
        """Multiply the directions with a vector, in float64, by sums whose order depends on nothing else.

        Args:
            vector: float64 [d].

        Returns:
            B · vector, float64 [k].
        """

    def products(self, vector: Array, places: Places | None) -> tuple[Array, Array]:
        """Multiply heads Bφ_n with a vector.

        Args:
            vector: float64 [k].
            places: Ascending places, or None for all rows.

        Returns:
            Products and bounds of their errors, float64 [m].
        """


class CoarseRows(Protocol):
    """The rows of a pool, each with a product that is near its inner product with a vector and a bound of how near.

    Attributes:
        rows: The rows, ascending; a row's place in them names it here.
        norms: An upper bound of ‖φ_n‖ by place, measurement.
        bytes_per_row: What one product reads.
        heads: The rows' products in a few leading directions, where they are at hand.
    """

    @property
    def rows(self) -> Places:
        """The rows, int64 [c], ascending."""

    @property
    def norms(self) -> Array:
        """Upper bounds of ‖φ_n‖, float64 [c]."""

    @property
    def bytes_per_row(self) -> int:
        """Bytes read for one product."""

    @property
    def heads(self) -> HeadRows | None:
        """The rows in a few leading directions, or None."""

    def products(self, vector: Array, places: Places | None) -> tuple[Array, Array]:
        r"""Multiply rows with a vector.

        The numbers must depend on the row and the vector alone, not on what is multiplied beside them.

        Args:
            vector: float64 [d].
            places: Ascending places, or None for all rows.

        Returns:
            Products and bounds of their errors, float64 [m]: |product − φ_n · vector| ≤ error.
        """
