import pytest
import torch

from indexer.exact_kernel import Pairs, exact_kernel, kernel_features
from indexer.featurise import Featuriser
from indexer.parameters import select_parameters
from indexer.sketches import sketch_spec
from tests.indexer.cases import CASES, ROWS, PairsRecipe, naive_tangent_features
from tests.indexer.test_featurise import examples_of


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("budget", [1, 2**20])
def test_exact_kernel_is_the_product_of_whole_gradients(name: str, budget: int) -> None:
    case = CASES[name]
    model, inputs, labels = case.build()
    parameters = select_parameters(model)
    spec = sketch_spec("identity", None, parameters.num_parameters)
    featuriser = Featuriser(PairsRecipe(), model, spec, case.measurement, parameters, memory_budget_bytes=budget)
    pairs = Pairs(torch.tensor([0, 2, 1]), torch.tensor([4, 3, ROWS - 1]))
    slabs = featuriser.slabs(examples_of(inputs, labels), view=case.measurement.views(4)[0])
    exact = exact_kernel(slabs, ROWS, pairs)
    whole = naive_tangent_features(case, model, inputs, labels, parameters)
    products = whole[pairs.first] * whole[pairs.second]
    scale = float((whole @ whole.T).abs().max())
    torch.testing.assert_close(exact.kernel, whole @ whole.T, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(exact.squared_products, products.square().sum(1), rtol=1e-4, atol=1e-8 * scale**2)
    torch.testing.assert_close(
        exact.squared_mean_products, products.mean(0).square().sum(), rtol=1e-4, atol=1e-8 * scale**2
    )


def test_kernel_features_have_the_kernels_inner_products() -> None:
    rows = torch.randn(9, 4, dtype=torch.float64)  # rank 4: five eigenvalues are rounding, of either sign
    features = kernel_features(rows @ rows.T)
    torch.testing.assert_close(features @ features.T, rows @ rows.T)
