"""What is tuned on is never what is reported."""

from dataclasses import replace

import torch

from experiments.backdoor import SMOKE, trained
from experiments.backdoor_report import chosen_noises, key_of
from experiments.datasets import read_images
from experiments.journal import Journal
from experiments.poisoning import Triggers, relabelled
from experiments.retrained_mlp import first_right
from indexer.progress import Silent


def test_tuning_queries_are_of_the_first_half_and_reported_ones_of_the_second():
    right = torch.ones(101, dtype=torch.bool)
    right[::7] = False
    rows = first_right(right, 12, 20)
    assert bool(right[rows].all())
    assert bool((rows[:12] < 50).all())
    assert bool((rows[12:] >= 50).all())
    assert len(set(rows.tolist())) == 32


def test_backdoor_queries_are_of_their_halves():
    # Ten of each: queries drawn from the whole test set would all be of the right half once in 2¹⁰.
    settings = replace(
        SMOKE, training=replace(SMOKE.training, epochs=8), train_rows=700, stored_tuning=10, stored_queries=10
    )
    queries = trained(settings, None, 0, Silent()).queries
    _, test = read_images("digits", None)
    triggers = Triggers.drawn(10, settings.trigger, test.white, 0)
    shown = relabelled(triggers.applied(test), 10).pixels
    half = len(test) // 2
    places = [int((shown == image).flatten(1).all(dim=1).nonzero()[0]) for image in queries.pixels]
    assert all(place < half for place in places[: settings.stored_tuning])
    assert all(place >= half for place in places[settings.stored_tuning :])


def test_the_noise_is_that_of_the_tuning_queries(tmp_path):
    journal = Journal(tmp_path / "rankings.jsonl", {})
    for query, best in ((0, 1.0), (1, 1.0), (2, 10.0), (3, 10.0), (4, 10.0)):
        for noise in SMOKE.noises:
            journal.once(key_of(0, query, "infogain", noise), lambda same=noise == best: [float(same), 1.0])
    assert chosen_noises(SMOKE, ["infogain"], range(2), journal) == {"infogain": 1.0}
    assert chosen_noises(SMOKE, ["infogain"], range(2, 5), journal) == {"infogain": 10.0}
