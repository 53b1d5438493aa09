"""Nats of whole groups against dense float64 algebra, in both forms of D and on both sides of every choice of form."""

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from attribution.errors import NotPositiveDefiniteError, ShapeError
from attribution.group_information import GroupInformation
from tests import oracles
from tests.attribution.cases import CASES, RELATIVE_NOISES, Case, noise_of

FORMS = ["kernel", "gram"]


def given(sketches: Tensor, queries: Tensor, noise: float, form: str) -> GroupInformation:
    gram = sketches @ sketches.T if form == "kernel" else sketches.T @ sketches
    return GroupInformation(gram, form, sketches.shape[0], queries, noise, lambda positions: sketches[positions])


def groups_of(count: int) -> list[list[int]]:
    """Nothing, one row, every second row, all but the last, everything."""
    return [[], [count // 2], list(range(0, count, 2)), list(range(count - 1)), list(range(count))]


def as_tensor(group: Sequence[int]) -> Tensor:
    return torch.tensor(group, dtype=torch.int64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("relative", RELATIVE_NOISES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_nats_of_groups_are_the_oracle_s(case: Case, relative: float, form: str) -> None:
    sketches, query = case.make()
    noise = noise_of(sketches, relative)
    queries = torch.stack([query, query.flip(0) + 0.25])
    known = given(sketches, queries, noise, form)
    for place, one in enumerate(queries):
        assert float(known.gain_nats[place]) == pytest.approx(oracles.info_gain(one, sketches, noise), rel=1e-9)
        for group in groups_of(sketches.shape[0]):
            gain = float(known.gains(as_tensor(group))[place])
            # The oracles cancel: their own rounding is about 1e-16 · v₀/v.
            assert gain == pytest.approx(oracles.info_gain(one, sketches[group], noise), rel=1e-9, abs=1e-13)
            loss = float(known.losses(as_tensor(group))[place])
            assert loss == pytest.approx(oracles.info_loss(one, sketches, group, noise), rel=1e-7, abs=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, 4, 5, 8, 9, 29])
def test_both_sides_of_every_choice_of_space_agree(form: str, size: int) -> None:
    # d = 8: a loss turns to weight space above 4 rows, a gain above 8.
    sketches, query = CASES[0].make()
    noise = noise_of(sketches, 1.0)
    known = given(sketches, query.unsqueeze(0), noise, form)
    group = list(range(size))
    assert float(known.gains(as_tensor(group))) == pytest.approx(oracles.info_gain(query, sketches[:size], noise))
    assert float(known.losses(as_tensor(group))) == pytest.approx(oracles.info_loss(query, sketches, group, noise))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_losses_after_removals_are_those_of_what_is_left(case: Case, form: str) -> None:
    sketches, query = case.make()
    noise = noise_of(sketches, 1.0)
    known = given(sketches, query.unsqueeze(0), noise, form)
    first = list(range(0, sketches.shape[0], 3))
    left, kept = known.without(as_tensor(first))
    assert kept.tolist() == [row for row in range(sketches.shape[0]) if row not in first]
    second = list(range(0, left.num_rows, 2))
    expected = oracles.info_loss(query, sketches[kept], second, noise)
    assert float(left.losses(as_tensor(second))) == pytest.approx(expected, rel=1e-7, abs=1e-11)
    both = first + kept[second].tolist()
    steps = float(known.losses(as_tensor(first))) + float(left.losses(as_tensor(second)))
    assert steps == pytest.approx(float(known.losses(as_tensor(both))), rel=1e-9, abs=1e-12)  # nats add up along a path


@pytest.mark.parametrize("form", FORMS)
def test_small_losses_keep_their_digits(form: str) -> None:
    # At relative noise 1e8 the ratio of variances is 1 + 1e-9 or so; log1p of the change keeps what a ratio loses.
    sketches, query = CASES[0].make()
    noise = noise_of(sketches, 1e8)
    known = given(sketches, query.unsqueeze(0), noise, form)
    for group in ([3], list(range(6)), list(range(20))):
        first_order = float((sketches[group] @ query).square().sum() / (2 * noise * (query @ query)))
        assert float(known.losses(as_tensor(group))) == pytest.approx(first_order, rel=1e-6)
        assert float(known.gains(as_tensor(group))) == pytest.approx(first_order, rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_smallest_noise_allowed_keeps_six_digits_of_rational_arithmetic(form: str) -> None:
    generator = torch.Generator().manual_seed(11)
    sketches = torch.randint(-8, 9, (7, 4), generator=generator).double()
    query = torch.tensor([3.0, -1.0, 2.0, 5.0], dtype=torch.float64)
    with pytest.raises(NotPositiveDefiniteError) as caught:
        given(sketches, query.unsqueeze(0), 1e-14, form)
    noise = 1.01 * caught.value.smallest_noise_variance
    known = given(sketches, query.unsqueeze(0), noise, form)
    for group in ([2], [0, 3], [0, 1, 2, 3, 4, 5]):
        kept = [row for row in range(7) if row not in group]
        before, after = exact_variance(query, sketches, noise), exact_variance(query, sketches[kept], noise)
        loss = 0.5 * math.log(after / before)
        assert float(known.losses(as_tensor(group))) == pytest.approx(loss, rel=1e-6)


def exact_variance(query: Tensor, sketches: Tensor, noise: float) -> Fraction:
    """σ² φ_*ᵀ (ΦᵀΦ + σ²I)⁻¹ φ_* by Gaussian elimination of fractions."""
    dim, sigma = query.shape[0], Fraction(noise)
    rows = [[Fraction(value) for value in row] for row in sketches.tolist()]
    start = [Fraction(value) for value in query.tolist()]
    system = [
        [sum((row[i] * row[j] for row in rows), sigma if i == j else Fraction(0)) for j in range(dim)] + [start[i]]
        for i in range(dim)
    ]
    for column in range(dim):
        pivot = system[column][column]
        system[column] = [value / pivot for value in system[column]]
        for other in range(dim):
            if other != column:
                factor = system[other][column]
                system[other] = [a - factor * b for a, b in zip(system[other], system[column], strict=True)]
    return sigma * sum((a * line[-1] for a, line in zip(start, system, strict=True)), Fraction(0))


def test_a_group_that_names_an_example_twice_and_a_matrix_of_another_size_are_refused() -> None:
    sketches, query = CASES[0].make()
    with pytest.raises(ShapeError, match="once"):
        given(sketches, query.unsqueeze(0), 1.0, "gram").losses(as_tensor([0, 0, 1, 2, 3]))
    with pytest.raises(ShapeError, match="30 × 30"):
        GroupInformation(torch.eye(8).double(), "kernel", 30, query.unsqueeze(0), 1.0, lambda positions: sketches)
