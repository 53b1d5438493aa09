"""The baselines on a real network: their formulas, densely, and their signs."""

import pytest
import torch

from attribution.baselines import graddot, relatif, trak
from experiments.datasets import read_images
from experiments.frozen import Frozen, save_frozen
from experiments.indexing import Sketched, frozen_index
from experiments.margin_baselines import METHODS, NEXT_TO_NOTHING, MarginBaselines, ranked
from experiments.mlp_training import linear_weights, margins, train_mlp
from experiments.networks import initial_network
from indexer.progress import Silent
from indexer.training import TrainingSettings

DUPLICATED = list(range(0, 200, 10))


@pytest.fixture(scope="module")
def frozen() -> Frozen:
    """A small network on digits whose queries are training images."""
    train, _ = read_images("digits", None)
    train = train.take(torch.arange(200))
    model = initial_network("mlp 64 16 10", seed=0)
    settings = TrainingSettings(epochs=20, batch_size=20, peak_rate=0.05)
    weights = train_mlp(linear_weights(model), train.inputs(flat=True), train.labels, settings, seed=0)
    state = dict(zip(model.state_dict(), weights, strict=True))
    return Frozen("mlp 64 16 10", state, train, train.take(torch.tensor(DUPLICATED)))


@pytest.fixture(scope="module", params=[64, 1024], ids=["gram", "kernel"])
def baselines(request, frozen, tmp_path_factory) -> MarginBaselines:
    """Baselines over fewer and over more dimensions than rows."""
    folder = tmp_path_factory.mktemp("baselines")
    save_frozen(frozen, folder / "network.safetensors")
    index = frozen_index(
        folder / "network.safetensors", folder / "margin", Sketched("margin", False, request.param), Silent()
    )
    return MarginBaselines(frozen, index, 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_training_duplicate_of_the_query_scores_positive(baselines, method):
    for query, row in enumerate(DUPLICATED):
        assert baselines.scores(query, (method,))[method][row] > 0


@pytest.mark.parametrize("method", ["repsim", "relatif"])
def test_a_normalised_score_ranks_the_duplicate_first(baselines, method):
    everything = torch.arange(200)
    for query, row in enumerate(DUPLICATED):
        assert ranked(baselines.scores(query, (method,))[method], everything, 1) == [row]


def test_scores_are_the_dense_formulas(baselines, frozen):
    view = baselines._index.view("margin")
    rows = view.sketches(torch.arange(200), dtype=torch.float64)
    inverse = torch.linalg.inv(rows.T @ rows + 0.5 * view.mean_squared_norm() * torch.eye(rows.shape[1]).double())
    logits = frozen.logits(frozen.train).double()
    errors = 1 - torch.softmax(logits, dim=1).gather(1, frozen.train.labels.unsqueeze(1)).squeeze(1)
    query = rows[DUPLICATED[3]]
    found = baselines.scores(3)
    expected = {
        "graddot": errors * (rows @ query),
        "trak": errors * (rows @ inverse @ query),
        "relatif": (rows @ inverse @ query) / ((rows @ inverse * rows).sum(dim=1) * (query @ inverse @ query)).sqrt(),
    }
    for method, scores in expected.items():
        # The query was sketched anew, in float32 sums of another batch.
        torch.testing.assert_close(found[method], scores, rtol=1e-4, atol=1e-5 * float(scores.abs().max()))


@pytest.mark.parametrize("regularisation", [0.01, 0.5, 100.0])
def test_one_rotation_gives_what_attribution_solves_for_every_regularisation(baselines, frozen, regularisation):
    view = baselines._index.view("margin")
    rows = view.sketches(torch.arange(200), dtype=torch.float64)
    queries = torch.stack(
        [baselines._index.queries.sketch(q, "margin", int(frozen.queries.labels[q])).double() for q in (0, 7)]
    )
    errors = (
        1 - torch.softmax(frozen.logits(frozen.train).double(), dim=1).gather(1, frozen.train.labels[:, None])[:, 0]
    )
    noise = regularisation * view.mean_squared_norm()
    expected = {
        "trak": trak(queries, rows, errors, noise),
        "relatif": relatif(queries, rows, noise),
        "graddot": graddot(queries, rows, errors),
    }
    of_lambda = baselines.regularised(regularisation)
    for place, query in enumerate((0, 7)):
        found = of_lambda.scores(query, tuple(expected))
        for method, scores in expected.items():
            # The same numbers by another factorisation, in float64; small λ divides rounding by itself.
            torch.testing.assert_close(
                found[method], scores[place], rtol=1e-6, atol=1e-6 * float(scores[place].abs().max())
            )


def test_undamped_trak_is_the_pseudo_inverse(baselines, frozen):
    view = baselines._index.view("margin")
    if baselines._index.sketch_dim > 200:
        pytest.skip("ΦᵀΦ has rank 200 of 1,024 here, and λ decides what lies outside")
    rows = view.sketches(torch.arange(200), dtype=torch.float64)
    errors = torch.sigmoid(-margins(frozen.logits(frozen.train).double(), frozen.train.labels))
    query = baselines._index.queries.sketch(3, "margin", int(frozen.queries.labels[3]))
    expected = errors * (rows @ (torch.linalg.pinv(rows.T @ rows, hermitian=True) @ query))
    found = baselines.regularised(NEXT_TO_NOTHING).scores(3, ("trak",))["trak"]
    # λ is 1e-9 of the mean squared norm, the smallest eigenvalue some 1e-3 of it: a part in a million.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8 * float(expected.abs().max()))


def test_graddot_is_minus_the_product_of_the_gradients_of_margin_and_loss(frozen, baselines):
    # Unsketched, by autograd, on a few rows; the sketch keeps the sign of what is large.
    model = frozen.model()
    inputs, labels = frozen.train.inputs(flat=True), frozen.train.labels

    def gradient(row: int, loss: bool) -> torch.Tensor:
        logits = model(inputs[row : row + 1])
        value = torch.nn.functional.cross_entropy(logits, labels[row : row + 1])
        if not loss:
            value = torch.logit(torch.exp(-value.double()))
        return torch.cat([part.flatten() for part in torch.autograd.grad(value, list(model.parameters()))]).double()

    query = gradient(DUPLICATED[0], loss=False)
    exact = torch.stack([-(query @ gradient(row, loss=True)) for row in range(200)])
    found = baselines.scores(0, ("graddot",))["graddot"]
    correlation = torch.corrcoef(torch.stack([exact, found]))[0, 1]
    # Measured 0.83 at d = 64 and above 0.95 at d = 1,024; a wrong sign would make it negative.
    assert correlation > 0.7
