"""Explanations as matrices: what the formulas say of the stored sketches, what a set is, and what is refused."""

from dataclasses import replace

import pytest
import torch

from attribution.baselines import graddot, relatif, trak
from experiments.datasets import read_images
from experiments.frozen import Frozen
from experiments.index_explanations import IndexExplanations
from experiments.networks import initial_network
from sketchstore.reader import open_index

# Three indexes are built.
pytestmark = pytest.mark.slow

NETWORK = "mlp 64 16 10"
DIM = 32


@pytest.fixture(scope="module")
def frozen():
    train, test = read_images("digits", None, train_fraction=1.0)
    weights = initial_network(NETWORK, seed=3).state_dict()
    return Frozen(NETWORK, weights, train.take(torch.arange(60)), test.take(torch.arange(4)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("explanations")


def stored(folder):
    (index,) = folder.glob(f"*/margin-{DIM}")
    opened = open_index(index)
    view = opened.view("margin")
    return view, view.sketches(torch.arange(opened.num_rows), dtype=torch.float64), opened.column("one_minus_p")


@pytest.mark.parametrize("method", ["trak", "graddot", "relatif"])
def test_scores_of_rows_are_the_formulas_of_stored_sketches(frozen, folder, method):
    made = IndexExplanations(frozen, frozen.weights, folder, method=method, dim=DIM, relative_noise=0.5)
    rows = torch.arange(5)
    found = made.explain(frozen.train.take(rows).inputs(flat=True), frozen.train.labels[rows])
    view, sketches, errors = stored(folder)
    noise = 0.5 * view.mean_squared_norm()
    match method:
        case "trak":
            expected = trak(sketches[rows], sketches, errors, noise)
        case "graddot":
            expected = graddot(sketches[rows], sketches, errors)
        case _:
            expected = relatif(sketches[rows], sketches, noise)
    # The rows are sketched anew, in float32 sums of another batch.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    assert (found.diagonal() > 0).all()  # a training duplicate is a proponent
    if method != "relatif":
        torch.testing.assert_close(made.self_influence()[:5], found.diagonal(), rtol=1e-4, atol=0.0)


def test_a_set_gives_points_in_the_order_of_its_picks(frozen, folder):
    made = IndexExplanations(frozen, frozen.weights, folder, method="infogain", dim=DIM, picks=7)
    found = made.explain(frozen.train.take(torch.arange(3)).inputs(flat=True), frozen.train.labels[:3])
    assert found.shape == (3, 60)
    assert torch.equal(
        found.sort(dim=1, descending=True).values[:, :8], torch.tensor([[7.0, 6, 5, 4, 3, 2, 1, 0]] * 3).double()
    )
    assert torch.equal(found.argmax(dim=1), torch.arange(3))  # nothing tells more of a query than itself
    with pytest.raises(ValueError, match="ask trak or graddot"):
        made.self_influence()


def test_other_weights_get_an_index_of_their_own(frozen, folder, tmp_path):
    other = initial_network(NETWORK, seed=4).state_dict()
    asked = frozen.train.take(torch.arange(2)).inputs(flat=True), frozen.train.labels[:2]
    first, second = (
        IndexExplanations(frozen, weights, tmp_path, method="graddot", dim=DIM).explain(*asked)
        for weights in (frozen.weights, other)
    )
    assert len(list(tmp_path.iterdir())) == 2
    assert not torch.allclose(first, second)
    again = IndexExplanations(replace(frozen, weights=other), frozen.weights, tmp_path, method="graddot", dim=DIM)
    assert torch.equal(again.explain(*asked), first)


def test_an_unknown_method_is_refused_with_the_known_ones(frozen, folder):
    with pytest.raises(ValueError, match=r"'infogian'; allowed are infogain, .*relatif"):
        IndexExplanations(frozen, frozen.weights, folder, method="infogian", dim=DIM)
