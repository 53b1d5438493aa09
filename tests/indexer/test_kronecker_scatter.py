"""The bias figure of a kronecker sketch has a unit of the right size: it tells a wrong kernel from a right one."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from indexer.distortion import measure_distortion, sample_rows
from indexer.exact_kernel import exact_kernel
from indexer.featurise import Featuriser
from indexer.kernel_errors import kernel_errors, random_pairs
from indexer.kronecker_scatter import BlockScatter
from indexer.measurement import make_measurement
from indexer.parameters import select_parameters
from indexer.sketches import SketchSpec
from indexer.sketches.kronecker_plan import MatrixPart, kronecker_spec, plan_parts
from tests.indexer.cases import PairsRecipe

ROWS = 80
SEEDS = 60
DIM = 1024


def network() -> nn.Sequential:
    """A convolution of 16 x 16 blocks, a linear layer of 4 x 4 ones, biases as vectors."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(288, 10),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def setting():
    images, labels = load_digits(return_X_y=True)
    rows = (labels == 3).nonzero()[0][: ROWS + 10]
    inputs = torch.tensor(images[rows], dtype=torch.float32).view(-1, 8, 8) / 16
    examples = [(each, 3) for each in inputs]
    model, measurement = network(), make_measurement("label_logit")
    parameters = select_parameters(model)
    parts = plan_parts(parameters, DIM)
    # What makes the difference: a weight with several blocks, and one with a single block, which has no scatter.
    assert {part.blocks > 1 for part in parts if isinstance(part, MatrixPart)} == {True, False}

    def featuriser(seed: int) -> Featuriser:
        return Featuriser(PairsRecipe(), model, kronecker_spec(parameters, DIM, seed, parts), measurement, parameters)

    return examples, featuriser


def test_over_seeds_the_bias_has_its_stated_standard_error(setting) -> None:
    examples, featuriser = setting
    pairs, first = random_pairs(len(examples), 1000), featuriser(0)
    scatter = BlockScatter(first.spec, first.parameters, len(examples))
    exact = exact_kernel(scatter.watch(first.slabs(examples)), len(examples), pairs, first.sketch_ranges)
    biases = []
    for seed in range(2, SEEDS + 2):  # the scatter has the signs of seed 1
        of_seed = featuriser(seed)
        sketches = of_seed.sketch(examples).double()
        found = kernel_errors(of_seed.spec, exact, sketches, pairs, of_seed.parameters, scatter)
        biases.append(found["bias_in_standard_errors"])
    standardised = torch.tensor(biases)
    # 60 draws of mean 0; their mean square is 1 but for its own scatter (18 %) and that of the 16 blocks (up to 35 %).
    assert abs(float(standardised.mean())) < 4 / SEEDS**0.5
    assert 0.5 < float(standardised.square().mean()) < 2.0


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_kernel_of_twice_the_size_is_reported_and_a_right_one_is_not(setting, seed: int) -> None:
    examples, featuriser = setting
    of_seed, labels = featuriser(seed), torch.full((len(examples),), 3)
    sample = sample_rows(labels, "label")
    sketches = of_seed.sketch([examples[row] for row in (*sample.pool, *sample.queries)])
    right = measure_distortion(of_seed, examples, sample, "own", sketches=sketches)["kernel"]
    wrong = measure_distortion(of_seed, examples, sample, "own", sketches=2**0.5 * sketches)["kernel"]
    assert abs(right["bias_in_standard_errors"]) < 4
    assert 0.7 < right["squared_norm_ratio"] < 1.4
    assert wrong["bias_in_standard_errors"] > 5
    assert wrong["squared_norm_ratio"] == pytest.approx(2 * right["squared_norm_ratio"])


def test_without_scatter_the_bias_has_no_unit_and_is_not_given(setting) -> None:
    examples, featuriser = setting
    pairs, first = random_pairs(20, 100), featuriser(0)
    exact = exact_kernel(first.slabs(examples[:20]), 20, pairs, first.sketch_ranges)
    sketches = first.sketch(examples[:20]).double()
    assert kernel_errors(first.spec, exact, sketches, pairs, first.parameters)["bias_in_standard_errors"] is None


@pytest.mark.parametrize("family", ["kronecker", "sjlt"])
@pytest.mark.parametrize("zeros", [6, 20])
def test_gradients_of_zeros_leave_only_numbers_in_the_report(family: str, zeros: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16, bias=False), nn.ReLU(), nn.Linear(16, 10, bias=False)).eval()
    inputs = torch.tensor(load_digits().data[:20], dtype=torch.float32) / 16
    inputs[:zeros] = 0.0  # without biases, a blank image has no gradient
    examples, measurement, pairs = (
        [(each, 3) for each in inputs],
        make_measurement("label_logit"),
        random_pairs(20, 100),
    )
    parameters = select_parameters(model)
    spec = SketchSpec("sjlt", 64) if family == "sjlt" else kronecker_spec(parameters, 64, 0, plan_parts(parameters, 64))
    featuriser = Featuriser(PairsRecipe(), model, spec, measurement, parameters)
    slabs = featuriser.slabs(examples)
    scatter = BlockScatter(spec, parameters, 20) if family == "kronecker" else None
    slabs = slabs if scatter is None else scatter.watch(slabs)
    exact = exact_kernel(slabs, 20, pairs, featuriser.sketch_ranges)
    found = kernel_errors(spec, exact, featuriser.sketch(examples).double(), pairs, parameters, scatter)
    unknown = {name for name, value in found.items() if value is None}
    assert unknown == (
        {"bias_in_standard_errors", "squared_norm_ratio", "spread_over_theory"} if zeros == 20 else set()
    )
    assert all(math.isfinite(value) for value in found.values() if value is not None)
