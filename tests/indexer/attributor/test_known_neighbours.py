"""Known near-duplicates are recalled by view, partition and row, and the least recently used are forgotten."""

from types import SimpleNamespace

import torch

from indexer.attributor.known_neighbours import KnownNeighbours


def pool(view, label):
    return SimpleNamespace(view=SimpleNamespace(name=view), label=label)


def test_only_what_was_found_in_the_same_partition_is_recalled():
    known = KnownNeighbours()
    known.remember(pool("own", 3), {7: torch.tensor([1, 2]), 8: torch.tensor([], dtype=torch.int64)})
    assert known.of(pool("own", 3), [7, 8, 9]).keys() == {7, 8}
    assert known.of(pool("own", 3), [7])[7].tolist() == [1, 2]
    assert known.of(pool("own", 4), [7]) == {}
    assert known.of(pool("margin", 3), [7]) == {}


def test_the_least_recently_used_and_the_very_long_are_not_kept():
    known = KnownNeighbours(capacity=2, most_neighbours=3)
    asked = pool("own", None)
    known.remember(asked, {1: torch.tensor([5]), 2: torch.tensor([6])})
    assert known.of(asked, [1]).keys() == {1}
    known.remember(asked, {3: torch.tensor([7]), 4: torch.arange(4)})
    assert known.of(asked, [1, 2, 3, 4]).keys() == {1, 3}
