"""What is compared with rows alone, on sketches made by hand: how many rows, by how much, and what one of them says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from indexer.featurise import Featuriser, SketchedBatch
from indexer.measurement import make_measurement
from indexer.parameters import select_parameters
from indexer.precision import ComputeDtype
from indexer.rows_alone import Compared, compare_alone
from indexer.sketches import sketch_spec
from tests.indexer.cases import PairsRecipe

INPUTS, CLASSES = 4, 3


class Block:
    """Rows of a linear layer, whose gradient at a label is the row at the label's place; what is alone is counted."""

    def __init__(self, rows: int, *, sketch: str = "identity", compute_dtype: ComputeDtype = "float32") -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(rows, INPUTS, generator=generator)
        self.labels = torch.arange(rows) % CLASSES
        self.model = nn.Sequential(nn.Identity(), nn.Linear(INPUTS, CLASSES, bias=False)).eval()
        parameters = select_parameters(self.model)
        dim = None if sketch == "identity" else 8
        self.featuriser = Featuriser(
            PairsRecipe(),
            self.model,
            sketch_spec(sketch, dim, parameters.num_parameters),
            make_measurement("label_logit"),
            parameters,
            compute_dtype=compute_dtype,
        )
        self.looked_at: list[int] = []

    def gradients(self) -> Tensor:
        return (nn.functional.one_hot(self.labels, CLASSES)[:, :, None] * self.inputs[:, None, :]).flatten(1)

    def sketches_off_by(self, share: float, rows: Sequence[int]) -> Tensor:
        """The gradients, some of them longer by a share of their norm."""
        sketches = self.gradients()
        sketches[list(rows)] *= 1 + share
        return sketches

    def compared(
        self, sketches: Tensor, batches: Sequence[Sequence[int]], drawn_by: int = 0, given: Tensor | None = None
    ) -> Compared:
        self.looked_at = []

        def alone(row: int) -> Tensor:
            self.looked_at.append(row)
            return self.inputs[row : row + 1]

        found = SketchedBatch(sketches, None, given)
        return compare_alone(self.featuriser, found, self.labels, "own", batches, alone, drawn_by)


@pytest.mark.parametrize("rows", [2, 3, 8])
def test_a_single_row_that_differs_may_sit_on_a_kink(rows: int) -> None:
    block, first = Block(rows), set()
    for drawn_by in range(10):
        for row in range(rows):
            found = block.compared(block.sketches_off_by(1.0, [row]), [range(rows)], drawn_by)
            assert found == Compared(given_agrees=True), (drawn_by, row)
            first.add(block.looked_at[0] == row)
    assert first == {True, False}, "the row that differs must have been looked at"


def test_one_row_of_each_of_two_batches_may() -> None:
    block = Block(4)
    for drawn_by in range(10):
        found = block.compared(block.sketches_off_by(1.0, [1, 2]), [[0, 1], [2, 3]], drawn_by)
        assert found == Compared(given_agrees=True)


def test_rows_that_went_alone_are_looked_at_like_those_of_one_batch() -> None:
    block = Block(256)
    batches = [[row] for row in range(256)]
    assert block.compared(block.gradients(), batches) == Compared(given_agrees=True)
    assert len(set(block.looked_at)) == 4
    found = block.compared(block.sketches_off_by(1.0, range(256)), batches)
    assert found.changed is not None
    assert (found.changed.beside, found.changed.change) == (1, pytest.approx(1.0, rel=1e-5))  # float32


def test_a_row_that_is_wrong_alone_too_is_said_to_be() -> None:
    block = Block(4)
    right = block.featuriser.sketch_batch
    sketches = block.sketches_off_by(1.0, range(4))
    found = block.compared(sketches, [range(4)])
    assert found.changed is not None
    assert not found.changed.by_itself
    block.featuriser.sketch_batch = lambda *given, **named: 2 * right(*given, **named)  # type: ignore[method-assign]
    found = block.compared(sketches, [range(4)])
    assert found.changed is not None
    assert found.changed.by_itself


def test_two_rows_of_a_batch_that_differ_are_said_of_the_first_such_batch() -> None:
    block = Block(9)
    batches = [[8, 0], [5, 1, 3], [2, 4, 6, 7]]
    found = block.compared(block.sketches_off_by(0.5, [0, 1, 2, 3, 4, 5, 6, 7]), batches)
    assert found.changed is not None
    assert found.changed.row in batches[1]
    assert found.changed.beside == 3
    assert found.changed.change == pytest.approx(0.5, rel=1e-5)  # float32


@pytest.mark.parametrize(
    ("compute_dtype", "share", "differs"),
    [("float32", 0.015, False), ("float32", 0.025, True), ("bfloat16", 0.4, False), ("bfloat16", 0.6, True)],
)
def test_a_short_type_has_a_wider_tolerance_and_a_limit_too(
    compute_dtype: ComputeDtype, share: float, differs: bool
) -> None:
    block = Block(6, compute_dtype=compute_dtype)
    found = block.compared(block.sketches_off_by(share, range(6)), [range(6)])
    assert (found.changed is not None) == differs
    if found.changed is not None:
        # bfloat16 has eight bits: a gradient of its own is up to 1 / 256 away from that of float32.
        rounding = 1e-5 if compute_dtype == "float32" else (1 + share) / 256
        assert found.changed.change == pytest.approx(share, abs=rounding)


@pytest.mark.parametrize(("part", "differs"), [(1e-5, False), (0.1, True)])
def test_what_is_far_shorter_than_usual_is_not_compared_by_its_own_length(part: float, differs: bool) -> None:
    block = Block(8)
    block.inputs[:4] *= part
    found = block.compared(block.sketches_off_by(1.0, range(4)), [range(4), range(4, 8)])
    assert (found.changed is not None) == differs


@pytest.mark.parametrize(
    ("rows", "sketch", "looks"),
    [
        (1, "identity", 0),
        (2, "identity", 1),
        (127, "identity", 1),
        (128, "identity", 2),
        (200, "identity", 3),
        (256, "identity", 4),
        (1000, "identity", 4),
        (256, "rademacher", 1),  # a row alone costs as many random numbers as a batch
    ],
)
def test_some_percent_of_a_batch_are_looked_at_and_four_rows_more_where_one_differs(
    rows: int, sketch: str, looks: int
) -> None:
    block = Block(rows, sketch=sketch)
    sketches = block.featuriser.sketch_and_keep(block.inputs, block.labels).sketches
    assert block.compared(sketches, [range(rows)]) == Compared(given_agrees=True)
    assert len(set(block.looked_at)) == len(block.looked_at) == looks
    assert (block.compared(2 * sketches, [range(rows)]).changed is None) == (rows == 1)
    assert len(set(block.looked_at)) == len(block.looked_at) == min(rows, looks + 4 if looks else 0)


def test_which_rows_are_looked_at_is_drawn_for_every_batch_and_block_and_again_the_same() -> None:
    block = Block(128)
    batches, seen = [range(start, start + 32) for start in range(0, 128, 32)], []
    for drawn_by in (0, 0, 1, 2, 3):
        block.compared(block.gradients(), batches, drawn_by)
        assert [row // 32 for row in block.looked_at] == [0, 1, 2, 3]
        seen.append([row % 32 for row in block.looked_at])
    assert seen[0] == seen[1]
    places = [place for looked in seen[1:] for place in looked]
    assert len(set(places)) > 8, "sixteen of 32 places by chance are about twelve different ones"


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_what_the_watched_module_was_given_must_agree_in_every_batch(batch: int) -> None:
    block = Block(9)
    block.featuriser.watch(block.model[1])
    batches = [range(start, start + 3) for start in (0, 3, 6)]
    near = block.inputs * (1 + 1e-5)  # other products round so
    assert block.compared(block.gradients(), batches, given=near) == Compared(given_agrees=True)
    other = block.inputs.clone()
    other[list(batches[batch])] *= 1.01
    assert block.compared(block.gradients(), batches, given=other) == Compared(given_agrees=False)


def test_what_was_given_is_not_asked_for_where_nothing_is_watched() -> None:
    block = Block(6)
    assert block.compared(block.gradients(), [range(6)]) == Compared(given_agrees=True)
    assert block.compared(block.gradients(), [range(6)], given=block.inputs) == Compared(given_agrees=False)
