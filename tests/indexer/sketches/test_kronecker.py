import math

import pytest
import torch
from blake3 import blake3
from torch import Tensor, nn

from indexer.featurise import Featuriser
from indexer.jacobians import TangentFeatures
from indexer.measurement import make_measurement
from indexer.parameters import ParameterList
from indexer.sketches import KroneckerSketch, SketchSpec, SketchSpecError, make_sketch
from indexer.sketches.kronecker_plan import MatrixPart, VectorPart, kronecker_spec, plan_parts, read_parts
from indexer.sketches.theory import kronecker_variance_bound, two_sided_variance
from tests.indexer.cases import CASES, Case, PairsRecipe
from tests.indexer.layers.cases import LAYERS, LayerCase
from tests.indexer.specified_signs import sign
from tests.indexer.test_featurise import examples_of

ENTRIES = [("a.weight", (9, 3, 2), 1.0), ("a.bias", (9,), 1.0), ("b.weight", (4, 9), 1.0), ("b.bias", (4,), 1.0)]
PARAMETERS = ParameterList.of_entries(ENTRIES)


def spec_of(parameters: ParameterList, dim: int, seed: int = 0, side: int = 16) -> SketchSpec:
    return kronecker_spec(parameters, dim, seed, plan_parts(parameters, dim, side=side))


def scaled(model: nn.Module) -> ParameterList:
    """All parameters, with NTK scales that differ."""
    return ParameterList.of_entries(
        [(name, held.shape, 0.5 + number) for number, (name, held) in enumerate(model.named_parameters())]
    )


def sketched_gradients(sketch: KroneckerSketch, features: TangentFeatures, inputs, labels: Tensor, view: str) -> Tensor:
    out = torch.zeros(len(labels), sketch.spec.dim)
    for slab in features.slabs(inputs, labels, view):
        rows = slice(slab.first_row, slab.first_row + len(slab.gradients))
        sketch.add(slab.gradients, slab.offset, out[rows])
    return out


@pytest.mark.parametrize("side", [2, 16])
@pytest.mark.parametrize("name", CASES)
def test_a_sketch_from_hooks_is_that_of_the_gradients(name: str, side: int) -> None:
    case: Case = CASES[name]
    model, inputs, labels = case.build()
    parameters = scaled(model)
    view = case.measurement.views(4)[0]
    spec = spec_of(parameters, parameters.num_parameters * 3 // 4, side=side)
    recipe = PairsRecipe()
    featuriser = Featuriser(recipe, model, spec, case.measurement, parameters)
    features = TangentFeatures(model, parameters, case.measurement, recipe.call, recipe.outputs)
    sketch = make_sketch(spec, parameters.num_parameters, parameters=parameters)
    expected = sketched_gradients(sketch, features, inputs, labels, view)
    actual = featuriser.sketch(examples_of(inputs, labels), labels, view)
    assert float((actual - expected).norm() / expected.norm()) < 1e-5  # float32, sums in another order


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_sketched_without_its_gradient(name: str) -> None:
    case: LayerCase = LAYERS[name]
    model, inputs = case.build()
    model, inputs = model.float(), inputs.float() if inputs.is_floating_point() else inputs
    parameters = scaled(model)
    if name == "attention":
        pytest.skip("the general route takes it, and vmap of fused attention only works with a warning")
    measurement = make_measurement("custom", function=lambda outputs, label: outputs.squeeze(0))
    recipe = PairsRecipe()
    spec = spec_of(parameters, max(3, parameters.num_parameters * 3 // 4))
    labels = torch.zeros(len(inputs), dtype=torch.int64)
    featuriser = Featuriser(recipe, model, spec, measurement, parameters)
    actual = featuriser.sketch(examples_of(inputs, labels), labels, "custom")
    features = TangentFeatures(model, parameters, measurement, recipe.call, recipe.outputs)
    sketch = make_sketch(spec, parameters.num_parameters, parameters=parameters)
    expected = sketched_gradients(sketch, features, inputs, labels, "custom")
    assert float((actual - expected).norm() / expected.norm()) < 1e-5
    assert bool(expected.norm() > 0)


@pytest.mark.parametrize("side", [2, 16])
def test_slabs_in_any_order_and_cut_anywhere_are_a_product_with_the_columns(side: int) -> None:
    sketch = make_sketch(spec_of(PARAMETERS, 60, seed=5, side=side), PARAMETERS.num_parameters, parameters=PARAMETERS)
    gradients = torch.randn(3, PARAMETERS.num_parameters, generator=torch.Generator().manual_seed(0))
    whole, parts = torch.zeros(3, 60), torch.zeros(3, 60)
    sketch.add(gradients, 0, whole)
    for start, stop in ((57, 103), (0, 5), (5, 57)):
        sketch.add(gradients[:, start:stop], start, parts)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    columns = sketch.columns(0, PARAMETERS.num_parameters)
    torch.testing.assert_close(gradients @ columns, whole, rtol=1e-5, atol=1e-5)


def test_entries_follow_from_seed_and_names_as_specified() -> None:
    parts = [
        MatrixPart("a.weight", 2, 3, 2),
        MatrixPart("b.weight", 1, 4, 5),  # all four rows kept
        VectorPart(("a.bias", "b.bias"), 7),
    ]
    spec = kronecker_spec(PARAMETERS, 41, 12, parts)  # two numbers stay zero
    columns = make_sketch(spec, PARAMETERS.num_parameters, parameters=PARAMETERS).columns(0, 103)

    def seed(side: str, name: str) -> int:
        return int.from_bytes(blake3(f"kronecker 12 {side} {name}".encode()).digest()[:8], "little")

    rows, cols = seed("rows", "a.weight"), seed("columns", "a.weight")
    for row, column, block, i, j in ((0, 0, 0, 0, 0), (8, 5, 1, 2, 1), (4, 3, 0, 1, 1), (7, 1, 1, 0, 0)):
        entry = sign(rows, row, block * 3 + i) * sign(cols, column, block * 2 + j) / math.sqrt(2 * 3 * 2)
        assert math.isclose(columns[row * 6 + column, block * 6 + i * 2 + j], entry, rel_tol=1e-6)
    cols = seed("columns", "b.weight")
    for row, column, i, j in ((2, 8, 2, 4), (2, 8, 1, 4)):
        entry = (row == i) * sign(cols, column, j) / math.sqrt(5)
        assert math.isclose(columns[63 + row * 9 + column, 12 + i * 5 + j], entry, rel_tol=1e-6)
    vectors = seed("vectors", "")
    assert math.isclose(columns[54 + 3, 32 + 6], sign(vectors, 3, 6) / math.sqrt(7), rel_tol=1e-6)
    assert math.isclose(columns[99 + 1, 32 + 2], sign(vectors, 9 + 1, 2) / math.sqrt(7), rel_tol=1e-6)
    assert bool((columns[:, 39:] == 0).all())


@pytest.mark.parametrize(("blocks", "row_dim", "column_dim"), [(1, 3, 4), (3, 2, 2), (1, 8, 4), (1, 3, 10), (1, 8, 10)])
def test_inner_products_are_unbiased_with_the_spread_of_theory(blocks: int, row_dim: int, column_dim: int) -> None:
    generator = torch.Generator().manual_seed(4)
    parameters = ParameterList.of_entries([("w", (8, 10), 1.0)])
    # Sums of two outer products that resemble each other, with a heavy entry: every term of the variance counts.
    first, second = (
        (torch.randn(8, 2, generator=generator) + 0.5) @ (torch.randn(2, 10, generator=generator) + 0.5)
        for _ in range(2)
    )
    first[0, 0], second[0, 0] = 6.0, 5.0
    pair = torch.stack((first.flatten(), second.flatten()))
    part = MatrixPart("w", blocks, row_dim, column_dim)
    estimates = []
    for seed in range(4000):
        out = torch.zeros(2, part.dim)
        spec = kronecker_spec(parameters, part.dim, seed, [part])
        make_sketch(spec, 80, 1, parameters).add(pair, 0, out)
        estimates.append(float(out[0].double() @ out[1].double()))
    first, second = first.double(), second.double()
    errors = torch.tensor(estimates, dtype=torch.float64) - (first * second).sum()
    variance = two_sided_variance(first, second, row_dim, column_dim) / blocks
    if row_dim == 8 and column_dim == 10:
        assert float(variance) == 0.0
        assert float(errors.abs().max()) < 1e-4
        return
    standardised = float(errors.mean() / (variance / 4000).sqrt())
    assert abs(standardised) < 4, f"biased by {standardised:.1f} standard errors; a wrong 1/√(Bmn) shows here"
    # Heavier tails than a normal's: the sample variance of 4,000 values strays by some 5 %.
    assert math.isclose(float(errors.var() / variance), 1.0, abs_tol=0.2)
    lengths = first.square().sum()[None], second.square().sum()[None]
    bound = kronecker_variance_bound(spec, parameters, *lengths, (first * second).sum()[None])
    assert float(variance) <= float(bound)


def test_equal_gradients_of_rank_one_reach_the_bound_but_for_the_kurtosis_of_signs() -> None:
    parameters = ParameterList.of_entries([("w", (400, 300), 1.0)])
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(size, dtype=torch.float64, generator=generator) for size in (400, 300))
    gradient = torch.outer(u, v)
    spec = kronecker_spec(parameters, 48, 0, [MatrixPart("w", 1, 6, 8)])
    length = gradient.square().sum()[None]
    bound = float(kronecker_variance_bound(spec, parameters, length, length, length))
    # Signs spare 2 Σ u⁴/‖u‖⁴ ≈ 6/400 of the rows' share and 6/300 of the columns'.
    assert math.isclose(float(two_sided_variance(gradient, gradient, 6, 8)) / bound, 1.0, abs_tol=0.03)


def test_the_plan_uses_the_dim_and_follows_the_gradients_norms() -> None:
    model = CASES["convolution"].model()
    parameters = scaled(model)
    names = ["conv.weight", "norm.weight", "head.weight"]
    for dim in (30, 48, 60):
        for favourite in names:
            weights = {name: 1000.0 if name == favourite else 1.0 for name in names}
            parts = plan_parts(parameters, dim, weights)
            assert sum(part.dim for part in parts) <= dim
            assert read_parts(kronecker_spec(parameters, dim, 0, parts), parameters) == parts
    by_name = {name: plan_parts(parameters, 48, {other: float(other == name) for other in names}) for name in names}
    assert by_name["conv.weight"][0].dim > by_name["norm.weight"][0].dim
    assert by_name["norm.weight"][-1].dim > by_name["conv.weight"][-1].dim


def test_d_is_divided_in_proportion_to_the_norm_and_the_root_of_what_a_block_strays() -> None:
    entries = [("linear", (64, 64), 1.0), ("convolution", (64, 64, 3, 3), 1.0), ("bias", (2000,), 1.0)]
    weights = {"linear": 1.0, "convolution": 2.0, "bias": 3.0}
    parts = plan_parts(ParameterList.of_entries(entries), 4096, weights)
    # κ of blocks of 4 x 4, of 16 x 16 and of vectors (decision 11). Shares are cut to whole blocks, and some percent of
    # them left to the vectors; without the roots the convolution's would be half.
    wanted = [1.0 * math.sqrt(9), 2.0 * math.sqrt(33), 3.0 * math.sqrt(1)]
    for part, share in zip(parts, wanted, strict=True):
        assert part.dim == pytest.approx(4096 * share / sum(wanted), rel=0.15)


def test_large_shares_are_cut_into_blocks() -> None:
    parameters = ParameterList.of_entries([("w", (300, 500), 1.0)])
    (part,) = plan_parts(parameters, 4096, side=16)
    assert (part.blocks, part.row_dim, part.column_dim) == (16, 16, 16)
    (part,) = plan_parts(ParameterList.of_entries([("w", (300, 50, 3, 3), 1.0)]), 4096)
    assert (part.blocks, part.row_dim, part.column_dim) == (16, 16, 16)
    (part,) = plan_parts(parameters, 4096)
    assert (part.blocks, part.row_dim, part.column_dim) == (256, 4, 4)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([MatrixPart("a.weight", 1, 2, 2)], "leave out parameter 'a.bias'"),
        ([MatrixPart("c.weight", 1, 2, 2)], "does not fit parameter 'c.weight'"),
        ([MatrixPart("a.bias", 1, 2, 2)], "does not fit parameter 'a.bias'"),
        ([MatrixPart("a.weight", 1, 10, 2)], "does not fit a weight of 9 by 6"),
        ([VectorPart(("a.bias", "b.bias"), 14)], "more numbers than parameters"),
        ([MatrixPart("a.weight", 4, 4, 4)], "leave out"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: list, message: str) -> None:
    with pytest.raises(SketchSpecError, match=message):
        kronecker_spec(PARAMETERS, 60, 0, parts)


def test_specs_say_what_is_missing() -> None:
    with pytest.raises(SketchSpecError, match="needs its parts"):
        SketchSpec("kronecker", 60)
    with pytest.raises(SketchSpecError, match="is no part of a kronecker sketch"):
        read_parts(SketchSpec("kronecker", 60, 0, {"parts": [{"parameter": "a.weight"}]}), PARAMETERS)
    fitting = [
        MatrixPart("a.weight", 1, 6, 6),
        MatrixPart("b.weight", 1, 4, 5),
        VectorPart(("a.bias", "b.bias"), 8),
    ]
    with pytest.raises(SketchSpecError, match="take 64 numbers, its dim is 20"):
        kronecker_spec(PARAMETERS, 20, 0, fitting)
    with pytest.raises(SketchSpecError, match="at least 10"):
        plan_parts(PARAMETERS, 9)
    with pytest.raises(SketchSpecError, match="use an identity sketch"):
        plan_parts(PARAMETERS, 104)
    with pytest.raises(SketchSpecError, match="names and shapes"):
        make_sketch(spec_of(PARAMETERS, 60), PARAMETERS.num_parameters)
