import pytest
import torch
from torch import Tensor, nn

from indexer.jacobians import JacobianError, TangentFeatures
from indexer.measurement import MeasurementError, make_measurement
from indexer.ntk import ntk_scales
from indexer.parameters import ParameterList, select_parameters
from tests.indexer.cases import CASES, ROWS, Case, PairsRecipe, naive_tangent_features

# float32 against float64: the gradients are sums of at most a few dozen products.
ROUNDING = 2e-5


def features_of(case: Case, model: nn.Module, parameters: ParameterList, **settings: int) -> TangentFeatures:
    recipe = PairsRecipe()
    return TangentFeatures(model, parameters, case.measurement, recipe.call, recipe.outputs, **settings)


def assemble(features: TangentFeatures, inputs: object, labels: Tensor, all_rows: bool = False) -> Tensor:
    """Every slab in its place; NaN shows a gap, and a place written twice is an error."""
    view = features.measurement.views(4)[0]
    whole = torch.full((len(labels), features.num_parameters), torch.nan)
    for slab in features.slabs(inputs, labels, view, all_rows=all_rows):
        rows, width = slab.gradients.shape
        place = whole[slab.first_row : slab.first_row + rows, slab.offset : slab.offset + width]
        assert place.isnan().all(), "a coordinate came twice"
        assert slab.gradients.dtype == torch.float32
        assert not all_rows or rows == len(labels)
        place.copy_(slab.gradients)
    return whole


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def all_parameters(model: nn.Module) -> ParameterList:
    """Every parameter, frozen ones included, with scales that differ."""
    scales = ntk_scales(model, 2.0)
    return ParameterList.of_entries(
        [(name, parameter.shape, scales[name]) for name, parameter in model.named_parameters()]
    )


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


def test_tangent_features_equal_plain_gradients_of_one_example_at_a_time(case: Case) -> None:
    model, inputs, labels = case.build()
    parameters = all_parameters(model)
    features = features_of(case, model, parameters)
    actual = assemble(features, inputs, labels)
    assert relative_error(actual, naive_tangent_features(case, model, inputs, labels, parameters)) < ROUNDING


def test_each_parameter_takes_the_route_it_allows(case: Case) -> None:
    model, inputs, labels = case.build()
    features = features_of(case, model, all_parameters(model))
    assemble(features, inputs, labels)
    general = set(features.parameters.names) - set(features.hooked_parameters)
    assert general == set(case.general)
    assert features.vectorised == case.vectorised
    assert case.vectorised or any("vmap" in note for note in features.notes)


def test_hooks_and_the_general_route_agree(case: Case) -> None:
    model, inputs, labels = case.build()
    parameters = all_parameters(model)
    hooked = assemble(features_of(case, model, parameters), inputs, labels)
    general = features_of(case, model, parameters)
    general._hooks.modules = []
    assert relative_error(assemble(general, inputs, labels), hooked.double()) < ROUNDING


@pytest.mark.parametrize("settings", [{"memory_budget_bytes": 1}, {"slab_bytes": 4}, {"slab_bytes": 300}])
def test_features_do_not_depend_on_budgets(case: Case, settings: dict[str, int]) -> None:
    model, inputs, labels = case.build()
    parameters = all_parameters(model)
    roomy = assemble(features_of(case, model, parameters), inputs, labels)
    tight = assemble(features_of(case, model, parameters, **settings), inputs, labels)
    assert relative_error(tight, roomy.double()) < ROUNDING


@pytest.mark.parametrize("budget", [1, 2**20])
def test_slabs_with_all_rows_hold_all_rows(case: Case, budget: int) -> None:
    model, inputs, labels = case.build()
    parameters = all_parameters(model)
    expected = assemble(features_of(case, model, parameters), inputs, labels)
    features = features_of(case, model, parameters, memory_budget_bytes=budget)
    actual = assemble(features, inputs, labels, all_rows=True)
    assert relative_error(actual, expected.double()) < ROUNDING


def test_a_row_does_not_depend_on_its_batch_mates(case: Case) -> None:
    model, inputs, labels = case.build()
    features = features_of(case, model, all_parameters(model))
    together = assemble(features, inputs, labels)
    take = (lambda row: {n: v[row] for n, v in inputs.items()}) if isinstance(inputs, dict) else inputs.__getitem__
    for row in (0, 3, ROWS - 1):
        alone = assemble(features, take(slice(row, row + 1)), labels[row : row + 1])
        assert relative_error(alone, together[row : row + 1].double()) < ROUNDING


def test_rows_taken_from_a_large_tensor_need_no_more_room_than_their_own(case: Case) -> None:
    model, inputs, labels = case.build()
    if isinstance(inputs, dict):
        many = {name: value.repeat(50, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
        views = {name: value[:ROWS] for name, value in many.items()}
    else:
        views = inputs.repeat(50, *[1] * (inputs.ndim - 1))[:ROWS]
    model.requires_grad_()
    features = features_of(case, model, all_parameters(model))
    targets = features.measurement.targets(features.measurement.views(4)[0], labels)
    assert features.activation_bytes(views, targets) == features.activation_bytes(inputs, targets)


def test_linear_model_tangent_features_are_its_inputs() -> None:
    model = nn.Linear(5, 4, bias=False).eval()
    inputs, labels = torch.randn(3, 5), torch.tensor([2, 0, 2])
    features = features_of(CASES["mlp"], model, select_parameters(model))
    expected = torch.zeros(3, 4, 5)
    expected[torch.arange(3), labels] = inputs
    assert torch.equal(assemble(features, inputs, labels).reshape(3, 4, 5), expected)


def test_features_leave_no_hooks_and_no_gradients_behind() -> None:
    case = CASES["mlp"]
    model, inputs, labels = case.build()
    assemble(features_of(case, model, all_parameters(model)), inputs, labels)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_layer_that_behaves_otherwise_in_a_later_batch_takes_the_general_route() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.more = nn.Linear(5, 5), 0

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.inner(torch.cat((x, x[: self.more]))))[: len(x)]

    model = Fickle().eval()
    features = features_of(CASES["mlp"], model, select_parameters(model))
    inputs, labels = torch.randn(4, 5), torch.zeros(4, dtype=torch.int64)
    before = assemble(features, inputs, labels)
    assert features.hooked_parameters
    model.more = 1
    torch.testing.assert_close(assemble(features, inputs, labels), before)
    assert not features.hooked_parameters
    (note,) = features.notes
    assert note.startswith("parameter 'inner.weight', 'inner.bias' ")
    assert note.endswith("gradients take the general route")


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_the_model_has_no_output_for_is_refused(label: int) -> None:
    case = CASES["mlp"]
    model, inputs, labels = case.build()
    labels[2] = label
    with pytest.raises(MeasurementError, match=f"label {label}.*outputs 0 to 3"):
        assemble(features_of(case, model, all_parameters(model)), inputs, labels)


def test_labels_must_match_the_rows() -> None:
    case = CASES["mlp"]
    model, inputs, labels = case.build()
    with pytest.raises(JacobianError, match="7 examples came with labels of shape"):
        assemble(features_of(case, model, all_parameters(model)), inputs, labels[:3])


def test_a_measurement_that_vmap_refuses_still_works() -> None:
    base = CASES["mlp"]
    custom = make_measurement("custom", function=lambda o, y: o[int(y)] if o.sum().item() < 1e9 else o[0])
    case = Case(base.model, base.inputs, measurement=custom)
    model, inputs, labels = case.build()
    parameters = all_parameters(model)
    features = features_of(case, model, parameters)
    actual = assemble(features, inputs, labels)
    assert not features.vectorised
    assert relative_error(actual, naive_tangent_features(case, model, inputs, labels, parameters)) < ROUNDING


def test_an_input_overwritten_after_use_is_noticed() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1.0
            out = self.head(x)
            x.zero_()
            return out

    model = Overwriting().eval()
    features = features_of(CASES["mlp"], model, select_parameters(model))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        assemble(features, torch.randn(3, 5), torch.zeros(3, dtype=torch.int64))
    assert any("changed in place" in note for note in features.notes)


def test_a_model_without_logits_needs_a_measurement_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)).eval()
    features = features_of(CASES["mlp"], model, select_parameters(model))
    with pytest.raises(MeasurementError, match="Define measurement"):
        assemble(features, torch.randn(3, 5), torch.zeros(3, dtype=torch.int64))
