"""Rounded rows nominate, stored ones decide: the same steps to the last bit, however rough the rounding."""

import numpy as np
import pytest
import torch

from attribution.candidates import DenseCandidates
from attribution.gain_system import GainSystem
from attribution.infogain import select_infogain
from attribution.infoloss import select_infoloss
from attribution.loss_system import LossSystem
from attribution.posterior import SetPosterior, spectrum_of
from attribution.rounded_pursuit import RoundedPursuit
from attribution.rounded_rows import RoundedProducts
from tests.attribution.test_exact_rules import INSTANCES, instance

#: How far a row, and a vector, are from their rounded copies, relative to their lengths.
ROUGHNESS = [0.0, 1e-9, 0.01, 0.3, 2.0]
SEEDS = [range(first, first + 20) for first in range(0, INSTANCES, 20)]


class RoughRows:
    """Rows and vectors that as far from their rounded copies as they say, each in its own direction."""

    def __init__(self, sketches, roughness):
        rows = sketches.numpy()
        self._random = np.random.default_rng(3)
        self._roughness = roughness
        lengths = np.linalg.norm(rows, axis=1)
        self._rounded = rows + roughness * lengths[:, None] * self._directions(*rows.shape)
        self.norms = lengths * (1 + 1e-12)
        self.distances = np.linalg.norm(rows - self._rounded, axis=1) * (1 + 1e-12)
        self.rounded_norms = np.linalg.norm(self._rounded, axis=1)
        self.multiplied = 0

    def _directions(self, count, dim):
        directions = self._random.standard_normal((count, dim))
        return directions / np.linalg.norm(directions, axis=1, keepdims=True)

    def rounded_products(self, vector):
        self.multiplied += 1
        away = self._directions(1, vector.shape[0])[0]
        rounded = vector + 0.1 * self._roughness * np.linalg.norm(vector) * away
        return RoundedProducts(self._rounded @ rounded, rounded)


def loss_of(sketches, query, noise, excluded=()):
    given = SetPosterior(spectrum_of(sketches), noise).of_query(query, None, lambda places: sketches[places])
    return given.without(list(excluded)) if excluded else given


@pytest.mark.parametrize("seeds", SEEDS, ids=str)
def test_infogain_makes_the_same_steps(seeds):
    for seed in seeds:
        sketches, query, noise = instance(seed)
        budget, candidates = min(8, sketches.shape[0]), DenseCandidates(sketches)
        plain = list(select_infogain(query, candidates, noise, budget=budget))
        rows = RoughRows(sketches, ROUGHNESS[seed % len(ROUGHNESS)])
        assert list(select_infogain(query, candidates, noise, budget=budget, rounded=rows)) == plain
        # Once with the query and once for every pick but the last.
        assert rows.multiplied <= budget


@pytest.mark.parametrize("seeds", SEEDS, ids=str)
def test_infoloss_makes_the_same_steps(seeds):
    compared = 0
    for seed in seeds:
        sketches, query, noise = instance(seed)
        count, dim = sketches.shape
        if count <= dim:  # the kernel form reads no row
            continue
        compared += 1
        excluded = [seed % count, (seed + 1) % count] if seed % 3 == 0 else []
        pool = torch.tensor([place for place in range(count) if place not in excluded and place % 5 != seed % 5])
        budget, candidates = min(8, pool.numel()), DenseCandidates(sketches[pool])

        def select(rows, given=(sketches, query, noise, excluded), pool=pool, budget=budget, candidates=candidates):
            return list(select_infoloss(loss_of(*given), pool, budget=budget, candidates=candidates, rounded=rows))

        plain = select(None)
        assert select(RoughRows(sketches[pool], ROUGHNESS[seed % len(ROUGHNESS)])) == plain
    assert compared


@pytest.mark.parametrize("roughness", ROUGHNESS)
@pytest.mark.parametrize("rule", ["infogain", "infoloss"])
def test_every_score_lies_within_its_bounds_at_every_step(rule, roughness):
    for seed in range(0, INSTANCES, 10):
        sketches, query, noise = instance(seed)
        count, dim = sketches.shape
        if rule == "infogain":
            system = GainSystem(query.unsqueeze(0), DenseCandidates(sketches), noise, count)
        elif count > dim:
            given, everything = loss_of(sketches, query, noise), torch.arange(count)
            system = LossSystem(given.posterior, given.removal(), everything, given.sketches, DenseCandidates(sketches))
        else:
            continue
        pursuit = RoundedPursuit(system, RoughRows(sketches, roughness))
        left = list(range(count))
        for step in range(min(6, count - 1)):
            pursuit._update()
            lower, upper = pursuit._intervals(system.weighting())
            places = torch.tensor(left)
            values = system.evaluate(places)
            scores = (values.targets[:, 0] ** 2 / system.settle(places)).numpy()
            assert (lower[left] <= scores).all()
            assert (scores <= upper[left]).all()
            pursuit._refresh(places[::2].numpy(), system.evaluate(places[::2]))
            pursuit.accept(left.pop(step % len(left)))


def test_rows_as_near_as_8_bits_leave_few_to_decide(generator):
    sketches = torch.randn(600, 64, generator=generator, dtype=torch.float64)
    query = sketches[0] + torch.randn(64, generator=generator, dtype=torch.float64)
    looked = []

    class Counting(DenseCandidates):
        def sketches(self, positions):
            looked.append(positions.numel())
            return super().sketches(positions)

    steps = select_infogain(query, Counting(sketches), 64.0, budget=20, rounded=RoughRows(sketches, 0.01))
    assert len(list(steps)) == 20
    assert sum(looked) < 20 * 60
