"""Tuning of the noise by removal: the noise that costs most margin, and the sign of a drop."""

from pathlib import Path

import pytest

from experiments.indexing import Sketched, frozen_index
from experiments.information import select_rows
from experiments.journal import Journal
from experiments.mlp_training import linear_weights
from experiments.noise_by_removal import TuningSettings, tune
from experiments.noise_tuning import margin_drops
from indexer.attributor import Attributor
from indexer.progress import Silent
from tests.experiments.small_network import small_network

TUNING = TuningSettings(queries=2, noises=(0.1, 10.0), num_removed=10)


def test_the_noise_with_the_largest_mean_drop_is_chosen_and_a_drop_is_what_was_lost(tmp_path: Path):
    mlp = small_network(tmp_path, num_tuning=2, num_queries=1)
    index = frozen_index(mlp.file, tmp_path / "class-logit", Sketched("class_logit", True, 64), Silent())
    before = mlp.query_margins(linear_weights(mlp.frozen.model()), [0, 1]).tolist()
    lost = {
        "infogain": {0.1: (3.0, 1.0), 10.0: (1.0, 0.5)},
        "infoloss": {0.1: (2.5, -1.0), 10.0: (2.0, 1.0)},
    }
    journal = Journal(tmp_path / "trainings.jsonl", {})
    for method, of_noise in lost.items():
        for noise, drops in of_noise.items():
            for row, drop in enumerate(drops):
                journal.once(f"tune/{row}/{method}/{noise:g}/10", lambda row=row, drop=drop: before[row] - drop)
    chosen = tune(mlp, Attributor(index, engine="brute_force"), TUNING, journal, Silent())
    assert chosen == {"infogain": 0.1, "infogain_approx": 0.1, "infoloss": 10.0}
    found = margin_drops(mlp, TUNING, journal)
    for method, of_noise in lost.items():
        for noise, drops in of_noise.items():
            assert found[method, noise] == pytest.approx(drops)


def test_the_margin_is_that_of_the_network_without_what_was_selected(tmp_path: Path):
    mlp = small_network(tmp_path, num_tuning=1, num_queries=1)
    index = frozen_index(mlp.file, tmp_path / "class-logit", Sketched("class_logit", True, 64), Silent())
    attributor = Attributor(index, engine="brute_force")
    settings = TuningSettings(queries=1, noises=(1.0,), methods=("infogain",), num_removed=10)
    journal = Journal(tmp_path / "trainings.jsonl", {})
    tune(mlp, attributor, settings, journal, Silent())
    removed = select_rows(attributor, 0, int(mlp.frozen.queries.labels[0]), "infogain", 10, 1.0)
    assert journal["tune/0/infogain/1/10"] == pytest.approx(float(mlp.query_margins(mlp.retrain(removed), [0])[0]))
    assert journal["tune/0/infogain/1/10"] != pytest.approx(float(mlp.query_margins(mlp.retrain([]), [0])[0]))
