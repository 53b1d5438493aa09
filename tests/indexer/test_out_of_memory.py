"""A block that does not fit into memory is computed in parts, by the rule that the manifest states."""

import json

import pytest
import torch

from indexer.build import BuildInterruptedError, build_index
from indexer.build_settings import BuildSettings
from indexer.out_of_memory import RULE, BlockMemoryError, halving, is_out_of_memory
from sketchstore.reader import open_index
from tests.indexer.small_recipes import CLASSIFIER, write_recipe
from tests.indexer.test_build import StopAfter, contents


def cramped(most: int) -> str:
    """The classifier with a model that has room for so many rows."""
    return (
        CLASSIFIER
        + f"""

def call(model, inputs):
    if inputs.shape[0] > {most}:
        raise torch.OutOfMemoryError('no room')
    return model(inputs)
"""
    )


def test_memory_that_ran_out_is_told_from_other_errors() -> None:
    allocator = (
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"
    )
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError(allocator)):
        assert is_out_of_memory(error)
    with pytest.raises(RuntimeError) as caught:  # the allocator's own words, on this machine
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    for error in (RuntimeError("shapes"), ValueError("memory"), KeyError()):
        assert not is_out_of_memory(error)


def test_halves_round_up_and_one_row_is_the_last() -> None:
    tried, notes = [], []

    def compute(at_once: int) -> str:
        tried.append(at_once)
        if at_once > 1:
            raise MemoryError("no room")
        return "done"

    assert halving(compute, 11, "rows 0 to 10", notes.append) == ("done", 1)
    assert tried == [11, 6, 3, 2, 1]
    assert notes[0] == "out of memory: rows 0 to 10 were sketched 6 at a time"


@pytest.mark.slow
def test_a_block_that_does_not_fit_is_split_and_a_resumed_build_splits_it_again(tmp_path) -> None:
    settings = {"sketch": "rademacher", "dim": 32, "block_rows": 30, "threads": 1}
    roomy = write_recipe(tmp_path, CLASSIFIER, "roomy.py")
    build_index(BuildSettings(str(roomy), **settings), tmp_path / "roomy")
    recipe = write_recipe(tmp_path, cramped(8))
    report = build_index(BuildSettings(str(recipe), **settings), tmp_path / "whole" / "points")
    assert "out of memory: rows 0 to 29 were sketched 8 at a time" in report.notes
    index = open_index(tmp_path / "whole" / "points")
    assert index.manifest.build.options["out_of_memory"] == RULE
    assert index.manifest.build.compute_rows == 30
    log = [json.loads(line) for line in (index.path / "build-log.jsonl").read_text().splitlines()]
    assert [line["rows_at_once"] for line in log if line["event"] == "block"] == [8, 8]
    found, expected = (store.view("own").sketches(slice(0, 60)) for store in (index, open_index(tmp_path / "roomy")))
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    with pytest.raises(BuildInterruptedError):
        build_index(BuildSettings(str(recipe), **settings), tmp_path / "points", progress=StopAfter(90))
    build_index(BuildSettings(str(recipe), **settings), tmp_path / "points", resume=True)
    assert contents(tmp_path / "points") == contents(tmp_path / "whole" / "points")


@pytest.mark.slow
def test_a_row_that_does_not_fit_alone_says_what_to_do(tmp_path) -> None:
    source = (
        CLASSIFIER
        + """

def collate(examples):
    import torch
    inputs = torch.stack([x for x, _ in examples])
    return inputs, torch.tensor([label for _, label in examples])


def representation(model, inputs):
    raise MemoryError("no room")
"""
    )
    source = source.replace(
        "def representation(model, inputs):\n    return", "def _features(model, inputs):\n    return"
    )
    with pytest.raises(BlockMemoryError, match=r"rows 0 to 15 do not fit.*even one at a time.*--layers"):
        build_index(
            BuildSettings(str(write_recipe(tmp_path, source)), sketch="sjlt", dim=32, block_rows=16),
            tmp_path / "points",
        )
