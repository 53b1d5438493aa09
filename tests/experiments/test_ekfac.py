"""EK-FAC: labels of the Fisher matrix, scores against dense ones in float64, their sign, and that they are kept."""

import pytest
import torch

from experiments.datasets import read_images
from experiments.ekfac import PACKAGE_DAMPING, ekfac_scores, is_available, training_loss
from experiments.frozen import Frozen, Vectors
from experiments.mlp_training import linear_weights, train_mlp
from experiments.networks import initial_network
from indexer.training import TrainingSettings


def test_labels_of_the_fisher_matrix_are_drawn_from_the_network_and_not_the_true_ones():
    sure = torch.full((50, 10), -40.0)
    sure[:, 3] = 40.0
    wrong = torch.full((50,), 7)
    assert float(training_loss(sure, wrong, sample=True)) == pytest.approx(0.0, abs=1e-6)
    assert float(training_loss(sure, wrong, sample=False)) == pytest.approx(50 * 80.0)


def test_labels_are_drawn_in_proportion_to_the_probabilities():
    probabilities = torch.tensor([0.7, 0.2, 0.1])
    logits = probabilities.log().repeat(4000, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = float(training_loss(logits, torch.zeros(4000, dtype=torch.int64), sample=True)) / 4000
    # The mean of −log p under p is the entropy; its standard error here is 0.010.
    assert drawn == pytest.approx(float(-(probabilities * probabilities.log()).sum()), abs=0.04)


@pytest.mark.skipif(not is_available(), reason="EK-FAC's scores need kronfluence")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_training_duplicate_of_the_query_scores_positive_and_scores_are_kept(tmp_path):
    train, _ = read_images("digits", None)
    train = train.take(torch.arange(200))
    model = initial_network("mlp 64 16 10", seed=0)
    settings = TrainingSettings(epochs=20, batch_size=20, peak_rate=0.05)
    weights = train_mlp(linear_weights(model), train.inputs(flat=True), train.labels, settings, seed=0)
    duplicated = torch.arange(0, 200, 10)
    state = dict(zip(model.state_dict(), weights, strict=True))
    frozen = Frozen("mlp 64 16 10", state, train, train.take(duplicated))
    scores = ekfac_scores(frozen, tmp_path, rows_a_batch=64)
    assert scores.shape == (20, 200)
    assert bool((scores[torch.arange(20), duplicated] > 0).all())
    written = (tmp_path / "ekfac.safetensors").stat().st_mtime_ns
    assert torch.equal(ekfac_scores(frozen, tmp_path), scores)
    assert (tmp_path / "ekfac.safetensors").stat().st_mtime_ns == written


@pytest.mark.skipif(not is_available(), reason="the package's own default needs kronfluence")
def test_what_is_called_the_packages_damping_is_what_the_package_has():
    from kronfluence.arguments import ScoreArguments

    assert ScoreArguments().damping_factor == PACKAGE_DAMPING


def of_one_layer() -> Frozen:
    """A layer whose Fisher matrix does not depend on which labels are drawn, but on whether they are.

    Logits are 30 times the first three inputs. The first rows are torn between two classes, so that the error at the
    logits is half of their difference, with one sign or the other; the last ones are sure, and their true label is
    another: drawn labels give them no gradient, true labels one as large as any.
    """
    generator = torch.Generator().manual_seed(3)
    pairs = torch.tensor([[1.0, 1.0, 0.0]] * 11 + [[1.0, 0.0, 1.0]] * 7 + [[0.0, 1.0, 1.0]] * 4)
    sure = torch.eye(3)[[0, 1, 2, 0, 0]]
    logits = torch.cat([pairs, sure]) + 0.5 * torch.randn(27, 1, generator=generator)  # softmax does not see a shift
    vectors = torch.cat([logits, torch.randn(27, 3, generator=generator)], dim=1)
    labels = torch.tensor([0, 1] * 5 + [0] + [0, 2] * 3 + [0] + [1, 2] * 2 + [1, 2, 0, 2, 1])
    queries = Vectors(0.1 * torch.randn(4, 6, generator=generator), torch.tensor([0, 1, 2, 2]))
    weight = torch.cat([30 * torch.eye(3), torch.zeros(3, 3)], dim=1)
    state = dict.fromkeys(initial_network("mlp 6 3", seed=0).state_dict(), weight)
    return Frozen("mlp 6 3", state, Vectors(vectors, labels), queries)


def dense_ekfac(frozen: Frozen, drawn: torch.Tensor, damping: float | None = None) -> torch.Tensor:
    """George et al. 2018 of one linear layer in float64: variances of the gradients in the Kronecker factors' basis.

    Scores are ∇margin · (Λ + damping)⁻¹ · −∇loss, the damping 0.1 mean Λ where none is given; only the Fisher matrix
    has the labels ``drawn``.
    """
    (weight,) = (value.double() for value in frozen.weights.values())
    rows, queries = frozen.train.inputs(True).double(), frozen.queries.inputs(True).double()
    classes = torch.eye(3, dtype=torch.float64)

    def errors(labels: torch.Tensor) -> torch.Tensor:
        return torch.softmax(rows @ weight.T, dim=1) - classes[labels]

    basis_in = torch.linalg.eigh(rows.T @ rows / len(rows)).eigenvectors
    basis_out = torch.linalg.eigh(errors(drawn).T @ errors(drawn) / len(rows)).eigenvectors

    def turned(out: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        return torch.einsum("no,op,ni,ij->npj", out, basis_out, read, basis_in)

    variances = turned(errors(drawn), rows).square().mean(dim=0)
    scaled = 1 / (variances + (0.1 * variances.mean() if damping is None else damping))
    others = torch.softmax((queries @ weight.T).masked_fill(classes[frozen.queries.labels] == 1, -torch.inf), dim=1)
    of_margins = turned(classes[frozen.queries.labels] - others, queries)
    return torch.einsum("qpj,pj,npj->qn", of_margins, scaled, -turned(errors(frozen.train.labels), rows))


@pytest.mark.skipif(not is_available(), reason="EK-FAC's scores need kronfluence")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_scores_are_those_of_the_dense_layer_with_drawn_labels_and_the_packages_damping(tmp_path):
    frozen = of_one_layer()
    likeliest = frozen.logits(frozen.train).argmax(dim=1)  # of two as likely the first; either gives the same
    expected = dense_ekfac(frozen, likeliest)
    found = ekfac_scores(frozen, tmp_path, rows_a_batch=8).double()
    # float32 gradients and factors; their eigenvalues lie apart, so that the basis has the factors' accuracy.
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * largest)
    of_true_labels = dense_ekfac(frozen, frozen.train.labels)
    assert float((of_true_labels - expected).abs().max()) > 0.05 * largest, "true labels must show"


@pytest.mark.skipif(not is_available(), reason="EK-FAC's scores need kronfluence")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_damping_that_is_named_is_added_to_every_eigenvalue(tmp_path):
    frozen = of_one_layer()
    likeliest = frozen.logits(frozen.train).argmax(dim=1)
    by_heuristic = dense_ekfac(frozen, likeliest)
    expected = dense_ekfac(frozen, likeliest, damping=0.5)
    found = ekfac_scores(frozen, tmp_path, rows_a_batch=8, damping=0.5).double()
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * largest)  # as above
    assert float((by_heuristic - expected).abs().max()) > 0.05 * largest, "the damping must show"
