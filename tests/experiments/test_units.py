"""Ctrl-C stops an experiment between two units of its work, and what was finished is no part of the rate."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import (
    backdoor,
    backdoor_kernel,
    brittleness,
    coreset,
    information_sweeps,
    lds,
    mislabelled,
    noise_tuning,
    panels,
    stability,
)
from experiments.__main__ import main
from experiments.journal import Journal
from experiments.units import StoppedError, units_of
from tests.experiments.small_network import SETTINGS, small_network
from tests.experiments.stopping import Stopping


def test_what_was_finished_before_is_given_and_counted_as_done():
    progress = Stopping("never")
    assert list(units_of(progress, "work", "abc", lambda unit: unit == "b")) == ["a", "b", "c"]
    assert progress.phases == [("work", 3, 1)]


def test_no_units_are_no_phase():
    progress = Stopping("never")
    assert list(units_of(progress, "work", [])) == []
    assert progress.phases == []


def test_it_stops_before_a_unit_that_is_not_finished():
    given: list[str] = []
    with pytest.raises(StoppedError):
        given.extend(units_of(Stopping("work", after=1), "work", "abcd", lambda unit: unit in "ac"))
    assert given == ["a", "b", "c"]


def test_halves_go_on_where_they_stopped_and_the_first_ones_are_no_part_of_the_rate(tmp_path: Path):
    mlp = small_network(tmp_path, num_tuning=2, num_queries=2)
    settings = replace(lds.SMOKE, mlp=SETTINGS, subsets=4)
    with pytest.raises(StoppedError):
        lds.train_halves(settings, mlp, tmp_path, Stopping("training on halves", after=2))
    assert list(Journal(tmp_path / "halves.jsonl", {"mlp": str(SETTINGS)})) == ["0", "1"]
    again = Stopping("never")
    _, margins = lds.train_halves(settings, mlp, tmp_path, again)
    assert again.phases == [("training on halves", 4, 2)]
    assert len(margins) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*GradScaler:FutureWarning")  # kronfluence's
@pytest.mark.parametrize(
    ("run", "settings", "phases"),
    [
        (lds.run, lds.SMOKE, ("training on halves", "tuning λ", "scoring the queries")),
        (coreset.run, coreset.SMOKE, ("tuning the noise", "selecting and training")),
        (
            backdoor.run,
            replace(backdoor.SMOKE, methods=("infogain", "random")),
            ("training on poisoned images", "tuning queries, seed 0", "queries, seed 0"),
        ),
        (backdoor_kernel.run, backdoor_kernel.SIZES["smoke"], ("ranking by exact kernels",)),
        (stability.run, stability.SMOKE, ("selecting, d = 128, seed 0",)),
        (information_sweeps.run, information_sweeps.SMOKE, ("sweeping ",)),
        (
            brittleness.run,
            replace(brittleness.SMOKE, methods=("infogain", "random")),
            ("tuning the noise", "removing and retraining"),
        ),
        (noise_tuning.run, noise_tuning.SIZES["smoke"], ("tuning the noise",)),
        (mislabelled.run, mislabelled.SIZES["smoke"], ("training on flipped labels",)),
        (panels.run, panels.SIZES["smoke"], ("asking",)),
    ],
    ids=lambda value: value.__module__.split(".")[-1] if callable(value) else "",
)
def test_every_long_phase_stops(run, settings, phases, tmp_path, monkeypatch):
    monkeypatch.setenv("NATTRIBUTE_CACHE", str(tmp_path / "cache"))
    for phase in phases:
        progress = Stopping(phase)
        with pytest.raises(StoppedError):
            run(settings, None, tmp_path, progress)
        assert progress.phases[-1][0].startswith(phase), "it went on"


@pytest.mark.parametrize("name", ["lds", "panels", "brittleness"])
def test_a_run_that_was_stopped_is_one_line_and_status_130(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NATTRIBUTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("indexer.terminal.LineProgress.stop_requested", lambda progress: True)
    monkeypatch.setattr(sys, "argv", ["experiments", name, "--size", "smoke", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == f"{name}: stopped; start it again with the same arguments to go on"
    assert said.out == ""


def test_the_first_training_is_a_phase(tmp_path):
    progress = Stopping("training the network")
    with pytest.raises(StoppedError):
        lds.run(lds.SMOKE, None, tmp_path, progress)
    assert progress.phases[0][0] == "training the network (digits)"
