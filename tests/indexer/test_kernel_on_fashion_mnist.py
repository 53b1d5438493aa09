"""The sketched kernel is right on real data: 1,000 random pairs of Fashion-MNIST, exact against sketched."""

import os
from pathlib import Path

import pytest
import torch

from indexer.exact_kernel import exact_kernel
from indexer.featurise import Featuriser
from indexer.kernel_errors import kernel_errors, random_pairs
from indexer.kronecker_scatter import BlockScatter
from indexer.measurement import make_measurement
from indexer.ntk import ntk_scales
from indexer.parameters import select_parameters
from indexer.recipe_file import load_recipe
from indexer.sketches import FAMILIES, sketch_spec
from indexer.sketches.kronecker_plan import kronecker_spec, plan_parts

DATA = os.environ.get("NATTRIBUTE_DATA")
ROWS = 64
SEEDS = 24

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DATA is None, reason="NATTRIBUTE_DATA names no folder with fashion-mnist"),
]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATTRIBUTE_CACHE", str(tmp_path_factory.mktemp("cache")))
        options = {"train_fraction": 0.02, "epochs": 2}
        recipe = load_recipe("fashion-mnist", data_dir=Path(str(DATA)), options=options)
        model, train_set = recipe.model(), recipe.train_set()
    parameters = select_parameters(model, scales=ntk_scales(model, recipe.ntk_gain))
    assert parameters.num_parameters == 535_040
    examples = [train_set[row] for row in range(ROWS)]
    pairs = random_pairs(ROWS, 1000)
    measurement = make_measurement("margin")

    def featuriser(spec) -> Featuriser:
        return Featuriser(recipe, model, spec, measurement, parameters)

    identity = featuriser(sketch_spec("identity", None, parameters.num_parameters))
    exact = exact_kernel(identity.slabs(examples, view="margin"), ROWS, pairs)
    return examples, pairs, exact, featuriser


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("identity", "kronecker")])
def test_sketched_kernel_is_unbiased_with_the_spread_of_theory(setting, family: str) -> None:
    examples, pairs, exact, featuriser = setting
    biases, spreads = [], []
    for seed in range(SEEDS):
        of_seed = featuriser(sketch_spec(family, 256, 535_040, seed=seed))
        errors = kernel_errors(of_seed.spec, exact, of_seed.sketch(examples, view="margin").double(), pairs)
        biases.append(errors["bias_in_standard_errors"])
        spreads.append(errors["spread_over_theory"] ** 2)
    standardised = torch.tensor(biases)
    # The mean errors of 24 seeds are 24 draws of mean 0 and variance 1, whatever the pairs have in common.
    assert abs(float(standardised.mean())) < 4 / SEEDS**0.5
    assert 0.4 < float(standardised.square().mean()) < 2.2
    # Errors of one seed go together, so that a seed's spread strays; the mean square over seeds does not.
    assert abs(float(torch.tensor(spreads).mean()) - 1.0) < 0.3


def test_a_kronecker_kernel_is_unbiased_and_strays_no_more_than_its_bound(setting) -> None:
    examples, pairs, _, featuriser = setting
    identity = featuriser(sketch_spec("identity", None, 535_040))
    parameters = identity.parameters
    parts = plan_parts(parameters, 1024)
    first = featuriser(kronecker_spec(parameters, 1024, SEEDS, parts))
    scatter = BlockScatter(first.spec, parameters, ROWS)
    slabs = scatter.watch(identity.slabs(examples, view="margin"))
    exact = exact_kernel(slabs, ROWS, pairs, first.sketch_ranges)
    assert torch.allclose(exact.part_kernels.sum(0), exact.kernel)
    biases, spreads = [], []
    for seed in range(SEEDS):
        of_seed = featuriser(kronecker_spec(parameters, 1024, seed, parts))
        sketches = of_seed.sketch(examples, view="margin").double()
        errors = kernel_errors(of_seed.spec, exact, sketches, pairs, parameters, scatter)
        biases.append(errors["bias_in_standard_errors"])
        spreads.append(errors["spread_over_theory"] ** 2)
    standardised = torch.tensor(biases)
    assert abs(float(standardised.mean())) < 4 / SEEDS**0.5
    assert 0.35 < float(standardised.square().mean()) < 2.6  # as above, over a variance from 16 blocks a weight
    # The spread is over an upper bound, so that it may be smaller than 1.
    assert 0.02 < float(torch.tensor(spreads).mean()) < 1.3


def test_identity_gives_the_exact_kernel(setting) -> None:
    examples, pairs, exact, featuriser = setting
    identity = featuriser(sketch_spec("identity", None, 535_040))
    errors = kernel_errors(identity.spec, exact, identity.sketch(examples, view="margin").double(), pairs)
    assert errors["relative_spread"] < 1e-6
    assert errors["bias_in_standard_errors"] is None
