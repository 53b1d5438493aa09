import pytest
import torch
from torch import Tensor, nn

from indexer.layers.route import HookRoute
from indexer.parameters import ParameterList
from tests.indexer.layers.cases import LAYERS, ROWS, LayerCase

# Two ways to the same float64 sums; pieces are handed out as float32, which rounds each by 6e-8.
ROUNDING = 3e-7


def plain_gradients(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """vmap(grad), or row by row where vmap does not know a layer; [b, size] each."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def value(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (one.unsqueeze(0),)).squeeze()

    gradient = torch.func.grad(value)
    try:
        together = torch.func.vmap(gradient, in_dims=(None, 0))(weights, inputs)
    except (RuntimeError, NotImplementedError, UserWarning):  # some layers only warn that they will be slow
        rows = [gradient(weights, one) for one in inputs]
        together = {name: torch.stack([row[name] for row in rows]) for name in weights}
    return {name: found.reshape(ROWS, -1) for name, found in together.items()}


def single_gradients(model: nn.Module, inputs: Tensor):
    def alone(places, row: int) -> dict[str, Tensor]:
        model.zero_grad()
        model(inputs[row : row + 1]).sum().backward()
        named = dict(model.named_parameters())
        found = {place.name: named[place.name].grad for place in places}
        return {name: grad.clone() for name, grad in found.items() if grad is not None}

    return alone


def routed(case: LayerCase, budget: int = 2**29, slab_bytes: int = 2**25) -> tuple[HookRoute, nn.Module, Tensor]:
    model, inputs = case.build()
    parameters = ParameterList.of_entries(
        [(name, held.shape, 0.5 + number) for number, (name, held) in enumerate(model.named_parameters())]
    )
    route = HookRoute(model, parameters, lambda batch, _: model(batch).squeeze(1), budget, slab_bytes)
    route.probe(inputs[:2], torch.zeros(2), single_gradients(model, inputs))
    return route, model, inputs


# An even kernel with padding "same" is padded on one side more; torch copies the input for that and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


@pytest.fixture(params=LAYERS, ids=list(LAYERS))
def case(request: pytest.FixtureRequest) -> LayerCase:
    return LAYERS[request.param]


@pytest.mark.parametrize("all_rows", [False, True])
@pytest.mark.parametrize(("budget", "slab_bytes"), [(2**29, 2**25), (6000, 2**25), (6000, 64)])
def test_gradients_from_hooks_equal_vmap_of_grad(case: LayerCase, budget: int, slab_bytes: int, all_rows: bool) -> None:
    route, model, inputs = routed(case, budget, slab_bytes)
    expected = plain_gradients(model, inputs)
    whole = {place.name: torch.full((ROWS, place.size), torch.nan, dtype=torch.float64) for place in route.served}
    for row, offset, gradients in route.slabs(inputs, torch.zeros(ROWS), all_rows=all_rows):
        assert not all_rows or gradients.shape[0] == ROWS
        for place in route.served:
            first, last = max(offset, place.offset), min(offset + gradients.shape[1], place.offset + place.size)
            if first < last:
                part = whole[place.name][row : row + gradients.shape[0], first - place.offset : last - place.offset]
                assert part.isnan().all(), "a coordinate came twice"
                part.copy_(gradients[:, first - offset : last - offset])
    for place in route.served:
        right = expected[place.name] * place.ntk_scale
        assert float((whole[place.name] - right).norm()) <= ROUNDING * float(right.norm())


def test_parameters_that_hooks_cannot_serve_are_named_with_a_reason(case: LayerCase) -> None:
    route, _, _ = routed(case)
    assert set(route.refused) == set(case.general)
    assert all(route.refused.values())


def test_parameters_and_hooks_are_left_as_they_were() -> None:
    route, model, inputs = routed(LAYERS["conv2d_twice"])
    frozen = next(iter(model.parameters())).requires_grad_(False)
    list(route.slabs(inputs, torch.zeros(ROWS), all_rows=False))
    assert not frozen.requires_grad
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True]
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()
