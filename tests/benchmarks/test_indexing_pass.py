"""The programs on index passes run from command line to JSON; no time is judged."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import indexing_pass, kernel_ranks
from benchmarks.stored_pass import store_pass
from indexer.featurise import Featuriser
from indexer.measurement import make_measurement
from indexer.parameters import select_parameters
from indexer.sketches import sketch_spec
from sketchstore.reader import open_index

DATA = os.environ.get("NATTRIBUTE_DATA")


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="needs the folder of data sets, NATTRIBUTE_DATA")
def test_the_pass_is_compared_with_the_epoch_and_its_memory_measured(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data-dir", str(DATA), "--rows", "8", "--batch-rows", "4", "--dim", "512", "--turns", "1"]
    indexing_pass.main([*arguments, "--families", "kronecker", "--memory", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["num_parameters"] == 6_573_120
    assert found["num_rows"] == 8
    assert set(found["seconds_per_row"]) == {"epoch", "kronecker"}
    assert found["ratio_to_epoch"]["kronecker"] == pytest.approx(
        found["seconds_per_row"]["kronecker"] / found["seconds_per_row"]["epoch"]
    )
    assert 0 < found["store_share"]["kronecker"] < 1
    assert set(found["peak_growth_bytes"]) == {"step", "kronecker"}
    assert found["peak_growth_bytes"]["step"] > 6_573_120 * 4  # gradients and momentum at least


class Plain:
    """A recipe of rows that are tensors."""

    def call(self, model, inputs):
        return model(inputs)

    def outputs(self, model_output):
        return model_output

    def collate(self, examples):
        raise AssertionError("a pass has its rows collated")


def test_a_pass_publishes_a_sound_index_of_its_sketches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    parameters = select_parameters(model)
    spec = sketch_spec("sjlt", 64, parameters.num_parameters)
    featuriser = Featuriser(Plain(), model, spec, make_measurement("label_logit"), parameters, compute_rows=16)
    inputs, labels = torch.randn(1030, 6), torch.arange(1030) % 3  # a whole block of 1,024 rows and a short one
    ticks = iter(range(100))
    # a tick for each block
    assert (
        store_pass(
            featuriser, nn.Sequential(model[0], model[1]), inputs, labels, tmp_path / "pass", lambda: next(ticks)
        )
        == 2
    )
    index = open_index(tmp_path / "pass")
    assert [index.manifest.num_rows, index.manifest.sketch.dim] == [1030, 64]
    stored = torch.from_numpy(index.view("own").shard(0))
    torch.testing.assert_close(stored, featuriser.sketch_batch(inputs, labels), rtol=1e-5, atol=1e-6)
    assert index.column("predicted_labels").tolist() == model(inputs).argmax(1).tolist()
    assert index.column("representations").shape == (1030, 8)


def test_a_pass_of_a_scalar_without_representation_stores_sketches_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0)).eval()
    parameters = select_parameters(model)
    measurement = make_measurement("custom", function=lambda outputs, label: outputs)
    spec = sketch_spec("sjlt", 64, parameters.num_parameters)
    featuriser = Featuriser(Plain(), model, spec, measurement, parameters, compute_rows=16)
    inputs, labels = torch.randn(40, 6), torch.full((40,), -1)
    store_pass(featuriser, lambda rows: None, inputs, labels, tmp_path / "pass")
    index = open_index(tmp_path / "pass")
    stored = torch.from_numpy(index.view("custom").shard(0))
    torch.testing.assert_close(stored, featuriser.sketch_batch(inputs, labels, "custom"), rtol=1e-5, atol=1e-6)
    assert not set(index.manifest.columns) & {"predicted_labels", "one_minus_p", "representations"}


def test_ranks_of_a_small_model_agree(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATTRIBUTE_CACHE", str(tmp_path))
    arguments = ["digits", "--option", "epochs=2", "--dims", "512", "--rows", "30", "--queries", "3", "--json"]
    kernel_ranks.main([*arguments, "--families", "kronecker", "identity"])
    kronecker, identity = json.loads(capsys.readouterr().out)["found"]
    assert 0.5 < kronecker["mean"] <= 1.0
    assert identity["mean"] == pytest.approx(1.0, abs=1e-3)
