"""The quanda package asks an index: its metrics run, and what they are told is what the index holds."""

import pytest
import torch
from torch.utils.data import TensorDataset

from experiments.frozen import load_frozen
from experiments.indexing import RECIPES, Sketched, frozen_index
from experiments.mislabelled import SIZES, network
from indexer.progress import Silent

pytest.importorskip("quanda", reason="quanda is not installed: pip install quanda==0.5.0 beside nattribute")

# quanda's own imports warn, which is no fault of a test here.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The model, its training set, the flipped rows and what an explainer needs."""
    folder = tmp_path_factory.mktemp("quanda")
    file = network(SIZES["smoke"], None, folder, 0)
    index = frozen_index(file, folder / "margin", Sketched("margin", False, 64, spectra=False), Silent())
    frozen = load_frozen(file)
    train = TensorDataset(frozen.train.inputs(flat=True), frozen.train.labels)
    flipped = torch.nonzero(frozen.metadata["flipped"]).squeeze(1).tolist()
    return frozen.model(), train, flipped, {"index": index.path, "recipe": str(RECIPES / "frozen.py")}


@pytest.mark.parametrize("method", ["infogain", "trak", "graddot"])
def test_self_influence_is_what_explain_says_of_a_row_as_a_query(asked, method):
    from experiments.quanda_explainer import NattributeExplainer

    model, train, _, options = asked
    explainer = NattributeExplainer(model, train, **options, method=method)
    inputs, labels = (part[:40] for part in train.tensors)
    diagonal = explainer.explain(inputs, labels).diagonal()
    # The rows are sketched anew, in float32 sums of another batch.
    torch.testing.assert_close(explainer.self_influence()[:40], diagonal, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["infogain", "trak", "graddot", "relatif"])
def test_a_training_duplicate_scores_positive(asked, method):
    from experiments.quanda_explainer import NattributeExplainer

    model, train, _, options = asked
    inputs, labels = (part[:20] for part in train.tensors)
    assert (NattributeExplainer(model, train, **options, method=method).explain(inputs, labels).diagonal() > 0).all()


def test_quanda_finds_flipped_labels_by_trak_better_than_at_random(asked):
    from quanda.metrics.downstream_eval import MislabelingDetectionMetric

    from experiments.quanda_explainer import NattributeExplainer

    model, train, flipped, options = asked
    metric = MislabelingDetectionMetric.self_influence_based(
        model, train, NattributeExplainer, flipped, expl_kwargs={**options, "method": "trak"}
    )
    assert metric.compute()["score"] > 0.6  # a random order: 0.5


def test_another_model_or_training_set_is_refused(asked):
    from experiments.networks import initial_network
    from experiments.quanda_explainer import NattributeExplainer

    model, train, _, options = asked
    with pytest.raises(ValueError, match="weights"):
        NattributeExplainer(initial_network("mlp 64 32 10", seed=5), train, **options)
    with pytest.raises(ValueError, match="rows"):
        NattributeExplainer(model, TensorDataset(*(part[:7] for part in train.tensors)), **options)
    with pytest.raises(ValueError, match="infogian"):
        NattributeExplainer(model, train, **options, method="infogian")
