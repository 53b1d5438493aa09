"""More queries than there are: refused before anything is trained, with what is allowed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import coreset, information_sweeps, lds, stability
from experiments.__main__ import main
from experiments.datasets import read_images
from experiments.information_sweeps import asked_rows
from experiments.retrained_mlp import RetrainedMlp, TooManyQueriesError, check_halves, first_right
from tests.experiments.small_network import SETTINGS, small_network


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["experiments", *words])
    main()


@pytest.mark.parametrize("name", ["lds", "coreset"])
def test_too_many_are_refused_before_the_training(name, monkeypatch, tmp_path: Path):
    _, test = read_images("digits", None)
    second = len(test) - len(test) // 2
    with pytest.raises(SystemExit, match=rf"{name}: 100000 queries: .* allowed are 1 to {second}"):
        run(monkeypatch, name, "--size", "smoke", "--out", str(tmp_path), "--queries", "100000")
    assert not (tmp_path / "network.safetensors").exists()
    for settings in (lds.SMOKE, coreset.SMOKE):
        check_halves(len(test), settings.tuning_queries, settings.queries)


@pytest.mark.parametrize("name", ["relative-information", "stability"])
def test_more_than_are_stored_are_refused(name, monkeypatch, capsys, tmp_path: Path):
    assert information_sweeps.SMOKE.stored_queries == stability.SMOKE.stored_queries == 100
    with pytest.raises(SystemExit):
        run(monkeypatch, name, "--size", "smoke", "--out", str(tmp_path), "--queries", "130")
    assert "130; allowed are 1 to 100" in " ".join(capsys.readouterr().err.split())


def test_each_half_must_have_its_queries():
    check_halves(9, 4, 5)
    with pytest.raises(TooManyQueriesError, match=r"^5 tuning queries: .* allowed are 1 to 4"):
        check_halves(9, 5, 5)
    with pytest.raises(TooManyQueriesError, match=r"^6 queries: .* allowed are 1 to 5"):
        check_halves(9, 4, 6)


def test_queries_that_the_network_gets_wrong_do_not_count():
    right = torch.ones(20, dtype=torch.bool)
    right[12:] = False
    assert len(first_right(right, 10, 2)) == 12
    with pytest.raises(TooManyQueriesError, match=r"gets 2 of the 10 .* allowed are 1 to 2"):
        first_right(right, 10, 3)


def test_no_network_is_kept_that_lacks_queries(tmp_path: Path):
    untrained = replace(SETTINGS, training=replace(SETTINGS.training, epochs=1, peak_rate=1e-9))
    with pytest.raises(TooManyQueriesError, match="the network gets"):
        RetrainedMlp(untrained, None, tmp_path / "network.safetensors", num_tuning=100, num_queries=100)
    assert not (tmp_path / "network.safetensors").exists()


def test_queries_of_classes_without_a_view_are_not_counted(tmp_path: Path):
    mlp = small_network(tmp_path, num_tuning=10, num_queries=40)
    settings = replace(information_sweeps.SMOKE, views=(0, 1), queries=1)
    labels = mlp.frozen.queries.labels
    there = [row for row in mlp.query_rows if int(labels[row]) in (0, 1)]
    assert 1 < len(there) < 40
    assert asked_rows(mlp, replace(settings, queries=len(there))) == there
    with pytest.raises(TooManyQueriesError, match=rf"of the classes 0, 1; allowed are 1 to {len(there)}$"):
        asked_rows(mlp, replace(settings, queries=len(there) + 1))
