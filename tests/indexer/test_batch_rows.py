"""How many rows go together follows from the budget, and which from their lengths; the index's rows do not change."""

import sys
from itertools import pairwise

import pytest
import torch

from indexer.batch_rows import batches_of, rows_for
from indexer.build import BuildInterruptedError, build_index
from indexer.build_settings import BuildSettings, BuildSettingsError
from indexer.preparation import prepare
from indexer.reading import ExampleError
from sketchstore.reader import open_index
from tests.indexer.small_recipes import CLASSIFIER, write_recipe
from tests.indexer.test_build import StopAfter, contents

SEQUENCES = '''
"""A classifier of token sequences of 1 to 30 tokens, padded with 0 and masked; collate remembers the padded shapes."""
import torch
from torch import nn

shapes = []


def train_set():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 31, (90,), generator=generator).tolist()
    return [(torch.randint(1, 20, (n,), generator=generator), row % 3) for row, n in enumerate(lengths)]


def query_set():
    return train_set()[:7]


def length(example):
    return len(example[0])


def collate(examples):
    tokens = nn.utils.rnn.pad_sequence([tokens for tokens, _ in examples], batch_first=True)
    shapes.append(tuple(tokens.shape))
    return tokens, torch.tensor([label for _, label in examples])


class _Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens):
        mask = (tokens > 0).unsqueeze(-1)
        total = (self.embedding(tokens) * mask).sum(1)
        return self.head(torch.tanh(total / mask.sum(1)))


def model():
    torch.manual_seed(0)
    return _Mean().eval()
'''


def test_rows_of_about_one_length_go_together_and_none_is_lost() -> None:
    lengths = [5, 1, 9, 5, 2, 5, 7]
    batches = batches_of(7, 3, lengths)
    assert batches == [[1, 4, 0], [3, 5, 6], [2]]
    assert [row for batch in batches_of(7, 3) for row in batch] == list(range(7))
    assert batches_of(0, 3) == []


@pytest.mark.parametrize(
    ("budget", "row", "block", "lengths", "expected"),
    [
        (1000, 10, 1024, False, 64),  # 100 fit: the power of two below
        (10**9, 10, 1024, False, 1024),
        (10**9, 10, 4096, False, 1024),  # more than that makes nothing faster
        (10**9, 10, 60, False, 60),  # a block is never padded
        (10**9, 10, 1024, True, 128),  # eight batches of about one length
        (5, 10, 1024, False, 1),
        (10**9, 10, 3, True, 1),
    ],
)
def test_rows_are_what_fits_into_the_budget(budget, row, block, lengths, expected) -> None:
    assert rows_for(budget, row, block, lengths=lengths) == expected


def test_the_budget_decides_the_rows_and_a_number_overrides_it(tmp_path) -> None:
    path = str(
        write_recipe(
            tmp_path,
            CLASSIFIER.replace("nn.Linear(5, width)", "nn.Linear(5, 2**16 * width)").replace(
                "nn.Linear(width, 3)", "nn.Linear(2**16 * width, 3)"
            ),
        )
    )
    base = {"sketch": "sjlt", "dim": 64, "options": {"width": 1}}
    # A row keeps the layer's 65,536 outputs for the backward pass: 256 KiB at least, and at most a few such tensors.
    rows = prepare(BuildSettings(path, **base, memory_budget_mib=8)).compute_rows
    assert rows in (8, 16, 32)
    twice = prepare(BuildSettings(path, **base, memory_budget_mib=16)).compute_rows
    assert twice == min(60, 2 * rows)
    assert prepare(BuildSettings(path, **base, batch_rows=7)).compute_rows == 7
    for wrong in ({"memory_budget_mib": 0}, {"batch_rows": 0}):
        with pytest.raises(BuildSettingsError, match="must be at least 1"):
            prepare(BuildSettings(path, **base, **wrong))


@pytest.mark.slow
def test_sequences_are_padded_to_their_batch_and_rows_stay_what_they_are(tmp_path) -> None:
    settings = {"sketch": "sjlt", "dim": 64, "block_rows": 48, "threads": 1}
    path = write_recipe(tmp_path, SEQUENCES, "bucketed.py")
    build_index(BuildSettings(str(path), **settings), tmp_path / "bucketed")
    module = next(module for name, module in sys.modules.items() if name.startswith("nattribute_recipe_bucketed_"))
    widths = [shape[1] for shape in module.shapes if shape[0] == 6]  # batches of an eighth of a block
    assert min(widths) <= 6
    assert any(first < second for first, second in pairwise(widths))
    plain = write_recipe(tmp_path, SEQUENCES.replace("def length(", "def _length("), "plain.py")
    build_index(BuildSettings(str(plain), **settings), tmp_path / "plain")
    bucketed, unsorted = (open_index(tmp_path / name) for name in ("bucketed", "plain"))
    assert (bucketed.manifest.build.compute_rows, unsorted.manifest.build.compute_rows) == (6, 48)
    found, expected = (index.view("own").sketches(slice(0, 90)) for index in (bucketed, unsorted))
    # Sums over more or fewer zeros of padding, in float32
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(bucketed.predicted_labels, unsorted.predicted_labels)
    assert torch.allclose(bucketed.column("one_minus_p"), unsorted.column("one_minus_p"), atol=1e-6)


@pytest.mark.slow
def test_a_build_by_length_stopped_and_resumed_has_the_same_bytes(tmp_path) -> None:
    path = write_recipe(tmp_path, SEQUENCES)
    settings = BuildSettings(str(path), sketch="rademacher", dim=64, block_rows=16, threads=1)
    build_index(settings, tmp_path / "whole" / "points")
    with pytest.raises(BuildInterruptedError):
        build_index(settings, tmp_path / "points", progress=StopAfter(130))
    build_index(settings, tmp_path / "points", resume=True)
    assert contents(tmp_path / "points") == contents(tmp_path / "whole" / "points")


@pytest.mark.parametrize(
    ("length", "said"), [("-1", "length is -1"), ("1.5", r"length is 1\.5"), ("1 / 0", r"length\(\) raised Zero")]
)
def test_a_length_that_is_no_number_of_tokens_names_its_row(tmp_path, length, said) -> None:
    path = write_recipe(tmp_path, SEQUENCES.replace("return len(example[0])", f"return {length}"))
    with pytest.raises(ExampleError, match=f"train row 0: {said}"):
        prepare(BuildSettings(str(path), sketch="sjlt", dim=64))
