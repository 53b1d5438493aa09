"""sjlt of gradients that are never formed, against sjlt of the formed ones."""

import pytest
import torch
from torch import Tensor, nn

from indexer.featurise import Featuriser
from indexer.layers.factors import Factors, position_factors
from indexer.layers.gradients import Call, SlabSizes, matrix_slabs
from indexer.layers.kinds import Convolution, MatrixKind, PositionWise, matrix_kind
from indexer.measurement import make_measurement
from indexer.parameters import ParameterList, select_parameters
from indexer.sketches import SketchSpecError, make_sketch, sketch_spec
from indexer.sketches.sjlt import TABLE_PARAMETERS, SjltSketch

# Sums of the same float32 numbers in two orders
ROUNDING = 2e-6

CONVOLUTIONS = {
    "padded": nn.Conv2d(5, 7, 3, padding=1),
    "strided": nn.Conv2d(5, 7, (3, 2), padding=(2, 1), stride=(2, 3)),
    "dilated": nn.Conv2d(5, 7, 2, dilation=(1, 3)),
    "reflecting": nn.Conv2d(5, 7, 3, padding=1, padding_mode="reflect"),
    "flat": nn.Conv1d(5, 7, 3, padding=2, stride=2),
}


def formed(kind: MatrixKind, given: Tensor, delta: Tensor, rows: int) -> Tensor:
    return kind.gradient(kind.unfolded(given), delta, 0, rows).flatten(1)


def factors_of(rows: int, height: int, width: int, positions: int) -> tuple[Factors, Tensor]:
    torch.manual_seed(rows + height)
    delta, given = torch.randn(rows, positions, height), torch.randn(rows, positions, width)
    return position_factors(delta, given), delta.transpose(1, 2).matmul(given).flatten(1)


def sjlt(num_parameters: int, dim: int = 64, threads: int = 1) -> SjltSketch:
    sketch = make_sketch(sketch_spec("sjlt", dim, num_parameters, seed=3), num_parameters, threads)
    assert isinstance(sketch, SjltSketch)
    return sketch


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_factors_of_a_convolution_are_its_gradients(name: str) -> None:
    module = CONVOLUTIONS[name]
    kind = Convolution(module)
    given = torch.randn(3, 5, 6, 5) if module.weight.ndim == 4 else torch.randn(3, 5, 9)
    delta = torch.randn_like(module(given))
    factors = kind.factors(given, delta, 40)
    assert factors is not None
    torch.testing.assert_close(factors.formed(), formed(kind, given, delta, 7))
    assert kind.factors(given, delta, delta[0, 0].numel() - 1) is None


@pytest.mark.parametrize("transposed", [False, True])
def test_factors_of_a_linear_layer_are_its_gradients(transposed: bool) -> None:
    kind = PositionWise(transposed=transposed)
    given, delta = torch.randn(3, 6, 9), torch.randn(3, 6, 5)
    factors = kind.factors(given, delta, 6)
    assert factors is not None
    torch.testing.assert_close(factors.formed(), formed(kind, given, delta, 9 if transposed else 5))
    assert kind.factors(given, delta, 5) is None


def test_groups_and_lookups_have_no_factors() -> None:
    grouped = matrix_kind(nn.Conv2d(4, 8, 1, groups=2))
    assert grouped is not None
    assert grouped.factors(torch.randn(2, 4, 3, 3), torch.randn(2, 8, 3, 3), 99) is None
    lookup = matrix_kind(nn.Embedding(9, 4))
    assert lookup is not None
    assert lookup.factors(torch.zeros(2, 3, dtype=torch.int64), torch.randn(2, 3, 4), 99) is None


@pytest.mark.parametrize(("rows", "calls", "taken"), [(8, 1, True), (7, 1, False), (8, 2, False)])
def test_a_weight_comes_as_factors_where_many_rows_meet_it_once(rows: int, calls: int, taken: bool) -> None:
    place = next(iter(ParameterList.of_entries([("weight", (5, 9), 0.5)])))
    kind = PositionWise(transposed=False)
    made = [Call(kind, torch.randn(rows, 6, 9), torch.randn(rows, 6, 5)) for _ in range(calls)]
    expected = 0.5 * sum(formed(kind, call.given, call.delta, 5) for call in made)
    sizes = SlabSizes.chosen(2**25, 2**29, many_rows=False)
    found = list(matrix_slabs(place, made, rows, sizes, torch.device("cpu"), all_rows=False, factored=True))
    assert any(isinstance(piece, Factors) for *_, piece in found) == taken
    whole = [piece.formed() if isinstance(piece, Factors) else piece for *_, piece in found]
    torch.testing.assert_close(torch.cat(whole), expected)


@pytest.mark.parametrize("offset", [0, TABLE_PARAMETERS - 50], ids=["one table", "two tables"])
@pytest.mark.parametrize(("rows", "height", "width", "positions"), [
    (16, 4, 4, 1), (8, 5, 7, 3), (19, 30, 133, 2), (33, 9, 64, 16), (16, 9, 128, 1)
])  # fmt: skip
def test_factors_give_the_sketch_of_the_formed_gradients(
    rows: int, height: int, width: int, positions: int, offset: int
) -> None:
    factors, gradients = factors_of(rows, height, width, positions)
    sketch = sjlt(offset + factors.num_parameters)
    begun = torch.randn(rows, 64)
    found, expected = begun.clone(), begun.clone()
    sketch.add_factored(factors, offset, found)
    sketch.add(gradients, offset, expected)
    assert (found - expected).abs().max() <= ROUNDING * gradients.norm(dim=1).max()


def test_a_weight_over_a_whole_table_is_sketched_like_any_other() -> None:
    factors, gradients = factors_of(8, 256, 256, 1)
    found, expected = torch.zeros(2, 8, 64)
    sjlt(TABLE_PARAMETERS).add_factored(factors, 0, found)
    sjlt(TABLE_PARAMETERS).add(gradients, 0, expected)
    assert (found - expected).abs().max() <= ROUNDING * gradients.norm(dim=1).max()


def test_bits_depend_neither_on_threads_nor_on_the_rows_beside() -> None:
    factors, _ = factors_of(40, 12, 70, 3)
    alone, together = torch.zeros(2, 40, 64)
    sjlt(factors.num_parameters, threads=3).add_factored(factors, 0, together)
    sketch = sjlt(factors.num_parameters)
    for start, stop in ((0, 9), (9, 40)):
        some = position_factors(factors.left[start:stop].view(-1, 3, 12), factors.right[start:stop].view(-1, 3, 70))
        sketch.add_factored(some, 0, alone[start:stop])
    assert torch.equal(alone, together)


def test_rows_of_sketches_may_lie_apart() -> None:
    factors, _ = factors_of(8, 5, 6, 2)
    plain, apart = torch.zeros(8, 64), torch.zeros(64, 8).T
    sjlt(30).add_factored(factors, 0, plain)
    sjlt(30).add_factored(factors, 0, apart)
    assert torch.equal(plain, apart)


def test_factors_that_do_not_fit_are_refused() -> None:
    factors, _ = factors_of(8, 5, 6, 2)
    with pytest.raises(SketchSpecError, match="parameters 1 to 31 lie outside the 30"):
        sjlt(30).add_factored(factors, 1, torch.zeros(8, 64))
    with pytest.raises(SketchSpecError, match=r"go to rows \[8, 64\], got \[7, 64\]"):
        sjlt(30).add_factored(factors, 0, torch.zeros(7, 64))
    with pytest.raises(
        SketchSpecError, match=r"float32 factors and rows, got torch\.float32, torch\.float32, torch\.float64"
    ):
        sjlt(30).add_factored(factors, 0, torch.zeros(8, 64, dtype=torch.float64))
    with pytest.raises(SketchSpecError, match="3 × 6 is too small"):
        sjlt(30).add_factored(factors_of(8, 3, 6, 2)[0], 0, torch.zeros(8, 64))
    short = Factors(factors.left[:, :-1], factors.right, 1, 5, 5, factors.columns, factors.positions)
    with pytest.raises(SketchSpecError, match="factors of 9 and 12 numbers are read at 9 and 11"):
        sjlt(30).add_factored(short, 0, torch.zeros(8, 64))


class Images:
    """The least a recipe can be."""

    def call(self, model: nn.Module, inputs: Tensor) -> Tensor:
        found: Tensor = model(inputs)
        return found

    def outputs(self, model_output: Tensor) -> Tensor:
        return model_output

    def collate(self, examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        return torch.stack([image for image, _ in examples]), torch.tensor([label for _, label in examples])


def test_a_featuriser_sketches_a_network_by_factors_as_by_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5)
    ).eval()
    names = [name for name, _ in model.named_parameters()]
    parameters = select_parameters(model, scales=dict(zip(names, (0.5, 2.0, 3.0, 1.0, 0.3, 4.0), strict=True)))
    featuriser = Featuriser(
        Images(),
        model,
        sketch_spec("sjlt", 256, parameters.num_parameters),
        make_measurement("label_logit"),
        parameters,
    )
    images, labels = torch.randn(20, 3, 7, 7), torch.arange(20) % 5
    seen: list[str] = []
    plain = SjltSketch.add_factored
    monkeypatch.setattr(
        SjltSketch, "add_factored", lambda self, *given: (seen.append("factored"), plain(self, *given))[1]
    )
    found = featuriser.sketch_batch(images, labels)
    assert seen == ["factored"] * 3
    sketch, expected = sjlt_like(featuriser), torch.zeros(20, 256)
    for slab in featuriser.features.slabs(images, labels, "own"):
        sketch.add(slab.gradients, slab.offset, expected[slab.first_row : slab.first_row + len(slab.gradients)])
    assert (found - expected).norm() <= ROUNDING * expected.norm()


def sjlt_like(featuriser: Featuriser) -> SjltSketch:
    sketch = make_sketch(featuriser.spec, featuriser.parameters.num_parameters)
    assert isinstance(sketch, SjltSketch)
    return sketch
