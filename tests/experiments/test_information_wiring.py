"""What the information methods are asked: candidates, D and the noise, by dense oracles on hand-made indexes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import information_sweeps, panels, stability
from experiments.information import METHODS, random_rows, select_rows
from experiments.information_sweeps import nearest
from indexer.attributor import Attributor
from indexer.attributor.spectra import Spectra
from sketchstore.reader import Index
from tests import oracles
from tests.experiments.expected_rows import largest, picks
from tests.index_factory import make_index

CLASSES = 3


def index_of(folder: Path, view: str) -> Index:
    """An index whose classes have no direction of their own, so that rows of every class are as near to a query."""
    draw = np.random.default_rng(5).standard_normal
    names = [str(label) for label in range(CLASSES)] if view == "class" else [view]
    sketches = {name: draw((60, 16)).astype(np.float32) for name in names}
    return make_index(folder, name=view, view=view, num_queries=9, sketches=sketches)


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return index_of(tmp_path_factory.mktemp("wiring"), "class")


@pytest.mark.parametrize("own_class", [False, True], ids=["whole", "own_class"])
@pytest.mark.parametrize("method", METHODS)
def test_candidates_are_of_the_class_and_d_is_what_is_asked(of_classes: Index, method: str, own_class: bool):
    attributor = Attributor(of_classes, engine="brute_force")
    condition = "pool" if own_class else "comparable"
    found = {}
    for noise in (0.01, 10.0):
        found[noise] = select_rows(attributor, 4, 1, method, 6, noise, condition=condition)
        assert found[noise] == picks(of_classes, 4, 1, method, noise, 6, own_class=own_class)
        if method == "infoloss":
            assert found[noise] != picks(of_classes, 4, 1, method, noise, 6, own_class=not own_class)
    assert found[0.01] != found[10.0]


def test_panels_show_rows_of_the_querys_class_only(tmp_path: Path):
    index = index_of(tmp_path, "margin")
    attributor = Attributor(index, engine="brute_force")
    settings = replace(panels.SIZES["smoke"], picks=15)
    for method in attributor.methods:
        rows = [pick["row"] for pick in panels._picks(attributor, settings, 4, method)]
        assert set(index.labels[rows].tolist()) == {1}, method


def test_panels_ask_at_the_noise_of_their_settings(tmp_path: Path):
    index = index_of(tmp_path, "margin")
    attributor, view = Attributor(index, engine="brute_force"), index.view("margin")
    query = index.queries.sketch(4, "margin", 1).double()
    for method in METHODS:
        of_noise = {}
        for noise in (0.01, 10.0):
            settings = replace(panels.SIZES["smoke"], picks=6, relative_noise=noise)
            found = panels._picks(attributor, settings, 4, method)
            of_noise[noise] = [pick["row"] for pick in found]
            assert of_noise[noise] == picks(index, 4, 1, method, noise, 6), (method, noise)
            acquired = view.sketches(torch.tensor(of_noise[noise]), dtype=torch.float64)
            nats = oracles.info_gain(query, acquired, noise * view.mean_squared_norm())
            # Both in float64; a sum of logarithms step by step on one side.
            assert found[-1]["cumulative_nats"] == pytest.approx(nats, rel=1e-8), (method, noise)
        assert of_noise[0.01] != of_noise[10.0], method


def test_nearest_rows_have_the_largest_products_and_cosines():
    sketches = torch.tensor([[3.0, 4.0], [0.5, 0.0], [-9.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    pool = torch.tensor([10, 20, 30, 40])
    found = nearest(sketches, torch.tensor([1.0, 0.0], dtype=torch.float64), pool, 3)
    # Products 3, 0.5, -9, 1; cosines 0.6, 1, -0.99, 0.45.
    assert found == {"inner_product": [30, 10, 40], "cosine": [20, 10, 40]}


def test_relative_information_is_of_infolosss_own_selection_at_the_noise_of_the_sweep(of_classes: Index):
    settings = replace(information_sweeps.SMOKE, sizes=(2, 5), size=5)
    attributor, spectra = Attributor(of_classes, engine="brute_force"), Spectra(of_classes, 1 << 30)
    view, label, noise = of_classes.view("1"), 1, 0.1
    everything = view.sketches(torch.arange(60), dtype=torch.float64)
    query = of_classes.queries.sketch(4, "1", label).double()
    found = information_sweeps.losses(settings, attributor, spectra, 4, label, noise)
    chosen = {method: picks(of_classes, 4, label, method, noise, 5) for method in METHODS}
    chosen["inner_product"] = largest((everything @ query).abs(), of_classes.labels, label, 5)
    chosen["cosine"] = largest(everything @ query / everything.norm(dim=1), of_classes.labels, label, 5)
    chosen["random"] = random_rows(torch.nonzero(of_classes.labels == label).squeeze(1), 5, seed=4)
    assert set(chosen["infoloss"]) != set(chosen["infogain"])
    assert set(found) == set(chosen)
    for method, rows in chosen.items():
        for size in (2, 5):
            nats = oracles.info_loss(query, everything, rows[:size], noise * view.mean_squared_norm())
            assert found[method][str(size)] == pytest.approx(nats, rel=1e-8), (method, size)


def test_stability_selects_at_the_noise_from_the_class_and_likeness_is_of_two_different_picks(tmp_path: Path):
    index = index_of(tmp_path, "own")
    attributor, view = Attributor(index, engine="brute_force"), index.view("own")
    settings = replace(stability.SMOKE, picks=6)
    query = index.queries.sketch(4, "own", 1).double()
    everything = view.sketches(torch.arange(60), dtype=torch.float64)
    unit = torch.nn.functional.normalize(everything, dim=1)
    by_noise = {}
    for noise in (0.01, 10.0):
        found = stability.selections(settings, attributor, 4, 1, noise)
        expected = {method: picks(index, 4, 1, method, noise, 6) for method in METHODS}
        expected["inner_product"] = largest((everything @ query).abs(), index.labels, 1, 6)
        expected["cosine"] = largest(unit @ query, index.labels, 1, 6)
        by_noise[noise] = {method: one["picks"] for method, one in found.items()}
        assert by_noise[noise] == expected
        for one in found.values():
            cosines = [float(unit[a] @ unit[b]) for a in one["picks"] for b in one["picks"] if a != b]
            assert one["mean_cosine"] == pytest.approx(sum(cosines) / len(cosines))
    for method in METHODS:
        assert by_noise[0.01][method] != by_noise[10.0][method]
