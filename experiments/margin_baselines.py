"""Scores of the baselines for one query and all training rows, from an index of margins (method.md section 8).

A large score means a proponent, always. φ is the stored sketch of the margin, p the probability of a row's own label.
TracIn at the final checkpoint is GradDot.
"""

import copy
from functools import cached_property

import torch
from torch import Tensor

from attribution.baselines import graddot, repsim
from experiments.frozen import Frozen
from experiments.mlp_training import margins
from experiments.networks import is_flat
from indexer.attributor.spectra import Spectra
from sketchstore.reader import Index

METHODS = ("repsim", "graddot", "trak", "relatif")
#: λ for "none", in units of the mean squared norm: a singular ΦᵀΦ stays finite.
NEXT_TO_NOTHING = 1e-9


class MarginBaselines:
    """Baseline scores over one index.

    Args:
        frozen: The network with its training rows and queries, in the index's order.
        index: An index of its margins with the one view ``margin``, all queries stored.
        regularisation: λ of TRAK and RelatIF in units of the rows' mean squared norm, positive.
    """

    def __init__(self, frozen: Frozen, index: Index, regularisation: float) -> None:
        self._frozen = frozen
        self._index = index
        self._view = index.view("margin")
        self._spectrum = Spectra(index, 1 << 30).spectrum(self._view, None)
        self.regularisation = regularisation

    def regularised(self, regularisation: float) -> "MarginBaselines":
        """Return the same with another λ; what does not depend on it is shared."""
        _ = self._rotated, self._errors
        other = copy.copy(self)
        other.regularisation = regularisation
        other.__dict__.pop("_self_influence", None)
        return other

    def scores(self, query_row: int, methods: tuple[str, ...] = METHODS) -> dict[str, Tensor]:
        r"""Score every training row for a stored query.

        .. math:: \text{GradDot} = (1 - p_i)\, \phi_* \cdot \phi_i, \quad
            \text{TRAK} = (1 - p_i)\, \phi_*^\top (\Phi^\top \Phi + \lambda I)^{-1} \phi_i, \quad
            \text{RelatIF} = \frac{c(x_*, i \mid D)}{\sqrt{v(x_* \mid D)\, v(i \mid D)}}

        RepSim is the cosine of penultimate features. RelatIF is the label-free form (86), with σ² = λ. RepSim and
        GradDot are ``attribution.baselines``; TRAK and RelatIF are its formulas again, because it factorises ΦᵀΦ + λI
        anew for every call, and an experiment asks for hundreds of queries one by one and for every λ of a grid: here
        one eigendecomposition, the index's own, serves them all. Tests hold the two against each other.

        Args:
            query_row: The stored query.
            methods: Which of ``METHODS``.

        Returns:
            float64 ``[n]`` of each method.
        """
        assert self._index.queries is not None
        query = self._index.queries.sketch(query_row, "margin", int(self._frozen.queries.labels[query_row]))
        found: dict[str, Tensor] = {}
        for method in methods:
            match method:
                case "repsim":
                    found[method] = repsim(self._query_features[query_row : query_row + 1], self._features)[0]
                case "graddot":
                    found[method] = graddot(query[None], self._rows, self._errors)[0]
                case "trak":
                    found[method] = self._errors * (self._rotated @ self._solved(query))
                case "relatif":
                    # Both variances have the factor λ that the covariance has.
                    own = self._self_influence * self._query_influence(query)
                    found[method] = (self._rotated @ self._solved(query)) / own.sqrt()
                case _:
                    raise ValueError(f"method {method!r}; allowed are {', '.join(METHODS)}")
        return found

    # With ΦᵀΦ = V diag(e) Vᵀ and Z = ΦV, φ_*ᵀ (ΦᵀΦ + λI)⁻¹ φ_i = Σ_j Z_ij (Vᵀφ_*)_j / (e_j + λ), whatever of φ_* lies
    # outside the span of V: Z is made once for all λ and queries.

    @property
    def _lambda(self) -> float:
        return self.regularisation * self._view.mean_squared_norm()

    @property
    def _weights(self) -> Tensor:
        return 1.0 / (self._eigenvalues + self._lambda)

    @property
    def _eigenvalues(self) -> Tensor:
        return self._basis[1]

    @cached_property
    def _basis(self) -> tuple[Tensor, Tensor]:
        # V [d, m] and e [m]; from the kernel form, whose eigenvectors are of ΦΦᵀ, V = ΦᵀU/√e.
        values, vectors = self._spectrum.eigenvalues, self._spectrum.eigenvectors
        if self._spectrum.form == "gram":
            return vectors, values.clamp(min=0.0)
        kept = values > 1e-10 * float(values[-1])  # below it, rounding
        return self._rows.T @ (vectors[:, kept] / values[kept].sqrt()), values[kept]

    @cached_property
    def _rotated(self) -> Tensor:
        return self._rows @ self._basis[0]

    def _solved(self, query: Tensor) -> Tensor:
        return self._weights * (query @ self._basis[0])

    def _query_influence(self, query: Tensor) -> Tensor:
        along = query @ self._basis[0]
        rest = (query @ query - along @ along).clamp(min=0.0)
        return self._weights @ along.square() + rest / self._lambda

    @cached_property
    def _rows(self) -> Tensor:
        return self._view.sketches(torch.arange(self._view.num_rows), dtype=torch.float64)

    @cached_property
    def _errors(self) -> Tensor:
        # 1 − p = sigmoid(−margin), without cancellation.
        logits = self._frozen.logits(self._frozen.train).double()
        return torch.sigmoid(-margins(logits, self._frozen.train.labels))

    @cached_property
    def _self_influence(self) -> Tensor:
        return torch.cat([part.square() @ self._weights for part in self._rotated.split(2048)])

    @cached_property
    def _features(self) -> Tensor:
        return _representations(self._frozen, "train")

    @cached_property
    def _query_features(self) -> Tensor:
        return _representations(self._frozen, "queries")


@torch.no_grad()
def _representations(frozen: Frozen, split: str) -> Tensor:
    from experiments.recipes.frozen import representation

    images = frozen.train if split == "train" else frozen.queries
    model, flat = frozen.model(), is_flat(frozen.network)
    parts = torch.arange(len(images)).split(1000)
    return torch.cat([representation(model, images.take(rows).inputs(flat)) for rows in parts]).double()


def ranked(scores: Tensor, pool: Tensor, budget: int) -> list[int]:
    """Return the rows of a pool with the largest scores; ties go to the lowest row."""
    return [int(row) for row in pool[torch.argsort(-scores[pool], stable=True)[:budget]]]
