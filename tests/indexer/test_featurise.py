from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from indexer.batches import BatchError, map_tensors, num_rows, pad_rows
from indexer.featurise import Featuriser
from indexer.jacobians import JacobianError
from indexer.measurement import MeasurementError, make_measurement
from indexer.ntk import ntk_scales
from indexer.parameters import select_parameters
from indexer.sketches import SketchSpec, make_sketch, sketch_spec
from indexer.sketches.kronecker_plan import plan_parts
from indexer.training import state_digest
from sketchstore import manifest
from sketchstore.errors import IncompatibleSketchError
from sketchstore.manifest import Manifest
from tests.indexer.cases import CASES, Case, PairsRecipe, naive_tangent_features

ROUNDING = 2e-5


def examples_of(inputs, labels: Tensor) -> list:
    if isinstance(inputs, dict):
        return [({n: v[row] for n, v in inputs.items()}, int(label)) for row, label in enumerate(labels)]
    return [(inputs[row], int(label)) for row, label in enumerate(labels)]


def featuriser_of(case: Case, model: nn.Module, spec: SketchSpec, **settings) -> Featuriser:
    parameters = select_parameters(model)
    return Featuriser(PairsRecipe(), model, spec, case.measurement, parameters, **settings)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("family", ["rademacher", "gaussian", "sjlt"])
def test_a_sketch_is_the_specified_matrix_times_the_tangent_features(name: str, family: str) -> None:
    case = CASES[name]
    model, inputs, labels = case.build()
    featuriser = featuriser_of(case, model, SketchSpec(family, 36, seed=5))
    parameters = featuriser.parameters
    exact = naive_tangent_features(case, model, inputs, labels, parameters)
    matrix = make_sketch(featuriser.spec, parameters.num_parameters).columns(0, parameters.num_parameters)
    view = case.measurement.views(4)[0]
    sketches = featuriser.sketch(examples_of(inputs, labels), view=view)
    assert relative_error(sketches, exact @ matrix.double()) < ROUNDING


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("compute_rows", [1, 3, 1024])
def test_rows_do_not_depend_on_how_they_are_computed_together(compute_rows: int, pad: bool) -> None:
    case = CASES["mlp"]
    model, inputs, labels = case.build()
    examples = examples_of(inputs, labels)
    spec = SketchSpec("rademacher", 64)
    together = featuriser_of(case, model, spec).sketch(examples)
    split = featuriser_of(case, model, spec, compute_rows=compute_rows).sketch(examples, pad=pad)
    assert split.shape == together.shape
    assert relative_error(split, together) < ROUNDING


def test_a_padded_last_block_gives_the_bits_of_a_full_one() -> None:
    case = CASES["mlp"]
    model, inputs, labels = case.build()
    examples = examples_of(inputs, labels)
    featuriser = featuriser_of(case, model, SketchSpec("rademacher", 64), compute_rows=len(examples))
    full = featuriser.sketch([*examples[:3], *[examples[2]] * (len(examples) - 3)])
    assert torch.equal(featuriser.sketch(examples[:3], pad=True), full[:3])


def test_the_same_call_twice_gives_the_same_bits() -> None:
    case = CASES["convolution"]
    model, inputs, labels = case.build()
    featuriser = featuriser_of(case, model, SketchSpec("rademacher", 64))
    examples = examples_of(inputs, labels)
    assert torch.equal(featuriser.sketch(examples), featuriser.sketch(examples))


def test_threads_may_share_a_featuriser() -> None:
    case = CASES["mlp"]
    model, inputs, labels = case.build()
    examples = examples_of(inputs, labels)
    featuriser = featuriser_of(case, model, SketchSpec("rademacher", 64))
    expected = featuriser.sketch(examples)
    with ThreadPoolExecutor(4) as pool:
        for sketches in pool.map(lambda _: featuriser.sketch(examples), range(12)):
            assert torch.equal(sketches, expected)


def test_targets_replace_the_examples_own_labels() -> None:
    case = CASES["mlp"]
    model, inputs, labels = case.build()
    featuriser = featuriser_of(case, model, SketchSpec("rademacher", 64))
    asked = featuriser.sketch(examples_of(inputs, labels), targets=(labels + 1) % 4)
    relabelled = featuriser.sketch(examples_of(inputs, (labels + 1) % 4))
    assert torch.equal(asked, relabelled)


def test_seconds_are_split_between_gradients_and_sketch() -> None:
    case = CASES["mlp"]
    model, inputs, labels = case.build()
    featuriser = featuriser_of(case, model, SketchSpec("rademacher", 64))
    assert featuriser.seconds.sketch_share == 0.0
    featuriser.sketch(examples_of(inputs, labels))
    seconds = featuriser.seconds
    assert seconds.rows == len(labels)
    assert seconds.gradient_seconds > 0
    assert 0 < seconds.sketch_share < 1


def test_no_examples_give_no_rows() -> None:
    case = CASES["mlp"]
    model, inputs, labels = case.build()
    featuriser = featuriser_of(case, model, SketchSpec("rademacher", 64))
    assert featuriser.sketch_batch(inputs[:0], labels[:0]).shape == (0, 64)


def test_outputs_are_the_models() -> None:
    case = CASES["tokens"]
    model, inputs, labels = case.build()
    featuriser = featuriser_of(case, model, SketchSpec("rademacher", 64))
    with torch.no_grad():
        expected = model(**inputs)
    torch.testing.assert_close(featuriser.outputs(examples_of(inputs, labels)), expected)


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("family", ["kronecker", "sjlt", "rademacher"])
def test_outputs_come_with_the_sketches_where_a_plain_pass_was_needed(name: str, family: str) -> None:
    case = CASES[name]
    model, inputs, labels = case.build()
    parameters = select_parameters(model)
    options = {"parts": [part.as_json() for part in plan_parts(parameters, 36)]} if family == "kronecker" else {}
    spec = sketch_spec(family, 36, parameters.num_parameters, 3, options)
    # a budget of one byte cuts every batch into passes of single rows
    for settings in ({"compute_rows": 3}, {"memory_budget_bytes": 1}):
        featuriser = featuriser_of(case, model, spec, **settings)
        view = case.measurement.views(4)[0]
        kept = featuriser.sketch_and_keep(inputs, labels, view)
        outputs = kept.outputs
        assert torch.equal(kept.sketches, featuriser.sketch_batch(inputs, labels, view))
        assert (outputs is not None) == bool(featuriser.features.hooked_parameters)
        if outputs is not None:  # float32 sums of these few terms differ by rounding in other orders
            torch.testing.assert_close(outputs, featuriser.outputs_batch(inputs), rtol=1e-5, atol=1e-6)


def test_a_batch_takes_one_forward_pass_for_sketches_and_outputs() -> None:
    case = CASES["convolution"]
    model, inputs, labels = case.build()
    featuriser = featuriser_of(case, model, SketchSpec("sjlt", 64))
    featuriser.sketch_batch(inputs, labels)  # which routes the gradients take is found out by other passes
    passes = []
    model.register_forward_hook(lambda module, given, output: passes.append(len(output)))
    assert featuriser.sketch_and_keep(inputs, labels).outputs is not None
    assert passes == [len(labels)]


def test_a_model_in_train_mode_is_refused() -> None:
    case = CASES["convolution"]
    model, _, _ = case.build()
    model.norm.train()
    with pytest.raises(JacobianError, match=r"model.eval\(\)"):
        featuriser_of(case, model, SketchSpec("rademacher", 64))


def test_gradients_that_are_not_finite_are_refused_with_their_row() -> None:
    case = CASES["mlp"]
    model, inputs, labels = case.build()
    inputs[4, 2] = torch.inf
    with pytest.raises(JacobianError, match="row 4"):
        featuriser_of(case, model, SketchSpec("rademacher", 64)).sketch(examples_of(inputs, labels))


def test_finite_gradients_whose_sum_overflows_are_sketched() -> None:
    model = nn.Linear(4, 3, bias=False).eval()
    inputs = torch.full((2, 4), 3e38)
    featuriser = Featuriser(
        PairsRecipe(), model, SketchSpec("identity", 12), make_measurement("label_logit"), select_parameters(model)
    )
    sketches = featuriser.sketch([(row, 1) for row in inputs])
    assert sketches[:, 4:8].equal(inputs)


def test_batches_are_trees_of_tensors_with_one_row_each() -> None:
    batch = {"a": torch.zeros(3, 2), "b": [torch.ones(3), (torch.ones(3, 1),)]}
    assert num_rows(batch) == 3
    padded = pad_rows(batch, 5)
    assert padded["b"][1][0].shape == (5, 1)
    with pytest.raises(BatchError, match="same first dimension"):
        num_rows((torch.zeros(3), torch.zeros(2)))
    with pytest.raises(BatchError, match="must be the row"):
        num_rows(torch.zeros(()))
    with pytest.raises(BatchError, match="gave a str"):
        map_tensors(lambda tensor: tensor, {"text": "hello"})


def test_a_named_tuple_stays_one():
    pair = namedtuple("pair", "left right")
    found = map_tensors(lambda tensor: 2 * tensor, pair(torch.ones(2), torch.ones(3)))
    assert isinstance(found, pair)
    assert found.right.tolist() == [2, 2, 2]


def manifest_of(featuriser: Featuriser, model: nn.Module, views=("own",)) -> Manifest:
    """The parts of a manifest that say how to sketch a query."""
    parameters = featuriser.parameters
    return Manifest.model_construct(
        name="small",
        sketch=manifest.Sketch(
            num_parameters=parameters.num_parameters,
            parameters=parameters.as_manifest(),
            **featuriser.spec.as_manifest(),
        ),
        measurement=manifest.Measurement(name=featuriser.measurement.name),
        views=dict.fromkeys(views),
        build=manifest.Build(block_rows=4, shard_rows=4, compute_rows=3),
        digests=manifest.SourceDigests(weights=state_digest(model.state_dict())),
    )


@pytest.mark.parametrize("family", ["rademacher", "gaussian", "sjlt", "kronecker", "identity"])
def test_a_featuriser_from_the_manifest_gives_the_rows_of_the_index(family: str) -> None:
    case = CASES["convolution"]
    model, inputs, labels = case.build()
    parameters = select_parameters(model, scales=ntk_scales(model, 2.0))
    options = {"parts": [part.as_json() for part in plan_parts(parameters, 48)]} if family == "kronecker" else {}
    spec = sketch_spec(family, None if family == "identity" else 48, parameters.num_parameters, 3, options)
    built = Featuriser(PairsRecipe(), model, spec, case.measurement, parameters, compute_rows=3)
    again = Featuriser.from_manifest(manifest_of(built, model), PairsRecipe(), case.build()[0])
    assert again.parameters == built.parameters
    examples = examples_of(inputs, labels)
    assert torch.equal(again.sketch(examples), built.sketch(examples))


def test_class_views_come_from_the_manifest() -> None:
    case = CASES["mlp"]
    model, inputs, labels = case.build()
    measurement = make_measurement("class_logit", classes=[1, 3])
    parameters = select_parameters(model)
    # The manifest's number of rows computed together: products of other shapes may round differently.
    built = Featuriser(PairsRecipe(), model, SketchSpec("rademacher", 8), measurement, parameters, compute_rows=3)
    again = Featuriser.from_manifest(manifest_of(built, model, ("1", "3")), PairsRecipe(), model)
    examples = examples_of(inputs, labels)
    assert torch.equal(again.sketch(examples, view="3"), built.sketch(examples, view="3"))
    with pytest.raises(MeasurementError, match="no view '2'"):
        again.sketch(examples, view="2")


def test_a_model_with_other_weights_is_refused() -> None:
    case = CASES["mlp"]
    model, _, _ = case.build()
    written = manifest_of(featuriser_of(case, model, SketchSpec("rademacher", 8)), model)
    with pytest.raises(IncompatibleSketchError, match="sketched at weights with digest"):
        Featuriser.from_manifest(written, PairsRecipe(), case.build(seed=1)[0])


def test_a_model_with_other_parameters_is_refused() -> None:
    case = CASES["mlp"]
    model, _, _ = case.build()
    written = manifest_of(featuriser_of(case, model, SketchSpec("rademacher", 8)), model)
    model[4] = nn.Linear(3, 5)
    with pytest.raises(IncompatibleSketchError, match=r"'4\.weight' has shape \[5, 3\]"):
        Featuriser.from_manifest(written, PairsRecipe(), model)


def test_a_recipe_without_the_indexs_own_measurement_is_refused() -> None:
    case = CASES["regression"]
    model, _, _ = case.build()
    written = manifest_of(featuriser_of(case, model, SketchSpec("rademacher", 8)), model, ("custom",))
    with pytest.raises(IncompatibleSketchError, match="needs the recipe's measurement function"):
        Featuriser.from_manifest(written, PairsRecipe(), model)
