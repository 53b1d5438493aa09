"""The evidence from a spectrum is the log density of a dense Gaussian, in both forms and at every noise."""

import math

import pytest
import torch
from torch import Tensor

from attribution.errors import NotPositiveDefiniteError, ShapeError
from attribution.evidence import TargetEnergies, log_evidence, target_energies
from attribution.spectrum import spectrum_of

NOISES = [1e-3, 0.1, 1.0, 7.5, 1e3]


def dense(sketches: Tensor, targets: Tensor, noise_variance: float, squared_amplitude: float = 1.0) -> float:
    """log N(t; 0, a²(K + σ²I)) from a Cholesky factor of the whole matrix."""
    n = sketches.shape[0]
    covariance = squared_amplitude * (sketches @ sketches.T + noise_variance * torch.eye(n, dtype=torch.float64))
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=torch.float64), covariance)
    return float(gaussian.log_prob(targets))


def energies(sketches: Tensor, targets: Tensor, smallest: float = 1e-3) -> TargetEnergies:
    return target_energies(spectrum_of(sketches), targets, sketches.T @ targets, smallest)


def problem(rows: int, dim: int, *, duplicates: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + dim)
    sketches = torch.randn(rows, dim, dtype=torch.float64, generator=generator)
    if duplicates and rows > 2:
        sketches[1] = sketches[0]
        sketches[-1] = 0
    return sketches, torch.randn(rows, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("noise_variance", NOISES)
@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (1, 5), (8, 20), (20, 20), (30, 8), (200, 6)])
def test_the_evidence_is_the_dense_log_density(rows, dim, duplicates, noise_variance):
    sketches, targets = problem(rows, dim, duplicates=duplicates)
    found = log_evidence(energies(sketches, targets), noise_variance, "one")
    # The condition number λ_max/σ² of K + σ²I times float64's roundoff, which the dense factor suffers from as well.
    assert found == pytest.approx(dense(sketches, targets, noise_variance), rel=1e-9)


@pytest.mark.parametrize("noise_variance", NOISES)
@pytest.mark.parametrize(("rows", "dim"), [(8, 20), (30, 8)])
def test_the_profiled_amplitude_is_the_best_one(rows, dim, noise_variance):
    sketches, targets = problem(rows, dim)
    found = log_evidence(energies(sketches, targets), noise_variance)
    gram = sketches @ sketches.T + noise_variance * torch.eye(rows, dtype=torch.float64)
    best = float(targets @ torch.linalg.solve(gram, targets)) / rows
    assert found == pytest.approx(dense(sketches, targets, noise_variance, best), rel=1e-9)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert dense(sketches, targets, noise_variance, best * factor) < found


def test_a_profiled_amplitude_makes_the_units_of_the_targets_immaterial():
    sketches, targets = problem(30, 8)
    curves = [
        [log_evidence(energies(sketches, scale * targets), noise) for noise in NOISES] for scale in (1.0, 1e-3, 50.0)
    ]
    differences = torch.tensor(curves, dtype=torch.float64).diff(dim=1)
    assert torch.allclose(differences[0], differences[1], rtol=1e-9)
    assert torch.allclose(differences[0], differences[2], rtol=1e-9)


@pytest.mark.parametrize(("rows", "dim"), [(120, 200), (400, 40)])
def test_the_noise_that_made_the_targets_has_the_most_evidence(rows, dim):
    sketches, _ = problem(rows, dim)
    truth, generator = 3.0, torch.Generator().manual_seed(5)
    grid = [truth * 4.0**power for power in range(-4, 5)]
    total = torch.zeros(len(grid), dtype=torch.float64)
    for _ in range(20):  # one target says little where n is small
        weights = torch.randn(dim, dtype=torch.float64, generator=generator)
        targets = sketches @ weights + math.sqrt(truth) * torch.randn(rows, dtype=torch.float64, generator=generator)
        seen = energies(sketches, targets)
        total += torch.tensor([log_evidence(seen, noise) for noise in grid], dtype=torch.float64)
    assert grid[int(total.argmax())] == truth


def test_targets_of_zeros_have_no_best_amplitude():
    sketches, targets = problem(8, 20)
    assert log_evidence(energies(sketches, 0 * targets), 1.0) == math.inf


def test_what_does_not_fit_the_spectrum_is_refused():
    sketches, targets = problem(30, 8)
    with pytest.raises(ShapeError, match=r"moments .* shape \[8\] .*got none"):
        target_energies(spectrum_of(sketches), targets, None, 1.0)
    with pytest.raises(ShapeError, match=r"targets must have shape \[5\]"):
        target_energies(spectrum_of(sketches[:5]), targets, None, 1.0)
    with pytest.raises(NotPositiveDefiniteError, match="Use a noise_variance of at least"):
        target_energies(spectrum_of(torch.ones(4, 8, dtype=torch.float64)), targets[:4], None, 1e-17)
