"""Whatever one mutation does to an index directory: refused by the file's name, or no answer is another.

Checked as a service checks, at its start or at a file's first use, and as `indexer verify` does. A crash ends the test.
"""

import os
import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indexer.attributor import Attributor, Question
from indexer.derive import derive
from sketchstore.errors import CorruptIndexError, FormatVersionError
from sketchstore.reader import Index, open_index, verify_index
from sketchstore.remove import remove_rows
from sketchstore.writer import IndexWriter
from tests.index_factory import make_contents, make_index, make_plan, write_contents
from tests.reliability.lengths import rounds
from tests.reliability.mutations import Mutation, draw, mutated
from tests.reliability.published_states import same

LOG = "build-log.jsonl"  # no digest covers it, and nothing is answered from it


def own(folder: Path) -> Path:
    """Rows that compare by label, float32, two shards, features, queries; FAISS, spectra, codes and heads."""
    return make_index(folder, num_rows=400, dim=128, representations=3, shard_rows=256).path


def margin(folder: Path) -> Path:
    """Rows that all compare, float16, with a row and a query that are removed."""
    made = make_index(folder, view="margin", num_rows=80, dim=32, dtype="float16")
    remove_rows(made, ["train:7"])
    return made.path


def classes(folder: Path) -> Path:
    """A view for each class, weights beside them."""
    plan = make_plan(name="small", view="class", num_rows=48, dim=16)
    with IndexWriter.create(folder / "small", plan) as writer:
        write_contents(writer, make_contents(plan))
        writer.write_model({"weight": torch.ones(3, 4)})
        return writer.publish(default_relative_noise=0.5)


pytestmark = pytest.mark.slow
KINDS = {"own": own, "margin": margin, "class": classes}


def everything(index: Index) -> list[Any]:
    """What can be asked of an index, so that every file is used: answers, and what is shown beside them."""
    attributor = Attributor(index)
    told: list[Any] = []
    for row, method in ((1, "infogain_approx"), (2, "infoloss")):
        query = attributor.resolve_query_row(row)
        answer = asdict(attributor.answer(Question(query=query, method=method, budget=3, relative_noise=0.5)))
        information = answer.pop("information")
        steps = [{key: hit.pop(key) for key in ("step_nats", "cumulative_nats", "score")} for hit in answer["hits"]]
        del answer["timings_ms"], answer["search"], answer["warnings"]
        told.append((answer, information))
        told += [(None, step) for step in steps]
    shown = [str(index.examples.column(name).to_pylist()) for name in ("id", "label", "preview_text")]
    columns = [(name, np.asarray(index.column(name)).tobytes()) for name in index.manifest.columns]
    sketches = [(name, np.asarray(view.sketches(slice(None))).tobytes()) for name, view in index.views.items()]
    assert index.queries is not None
    asked = [str(index.queries.examples.column(name).to_pylist()) for name in ("id", "label")]
    stored = [[values.tobytes() for values in index.queries.arrays(name)] for name in index.queries.views]
    if index.queries.has_representations:
        stored.append([index.queries.representations().tobytes()])
    weights = None if index.weights_path is None else index.weights_path.read_bytes()
    return [*told, ((shown, columns, sketches, asked, stored, weights), {})]


def names(error: CorruptIndexError | FormatVersionError, mutation: Mutation) -> bool:
    files = {mutation.file, mutation.also} - {""}
    said = str(error)
    return any(said.startswith((file, f"{file}/")) for file in files) or (
        mutation.file == "derived/manifest.json" and said.startswith("derived/")
    )


def look(path: Path, check: Any, wanted: list[Any], mutation: Mutation) -> str:
    """Open and use an index as a service does: "refused", or "same" where the answers are those of the sound one."""
    refusal, found = None, []
    try:
        found = everything(open_index(path, check=check))
    except (CorruptIndexError, FormatVersionError) as error:
        refusal = error
    if refusal is not None:
        assert names(refusal, mutation), f"{mutation}: {refusal}"
        return "refused"
    assert same(found, wanted), f"{mutation}: another answer"
    return "same"


@pytest.mark.parametrize("kind", KINDS)
def test_one_mutation_is_refused_by_name_or_changes_no_answer(memory, tmp_path, kind):
    folder = memory / f"mutations-{kind}" if os.access(memory, os.W_OK) else tmp_path
    folder.mkdir()
    path = KINDS[kind](folder)
    derive(open_index(path))
    assert verify_index(path) == []
    wanted, rng, found = everything(open_index(path)), random.Random(kind), Counter[str]()
    for mutation in draw(path, rounds(36, 700), rng):
        before = (path / mutation.file).read_bytes()
        with mutated(path, mutation, rng):
            at_start = look(path, "digests", wanted, mutation)
            at_use = look(path, "use", wanted, mutation)
            named = verify_index(path)
        assert (path / mutation.file).read_bytes() == before
        if mutation.file != LOG and mutation.also != LOG:
            assert any(
                damage.file in (mutation.file, mutation.also) or damage.file.startswith("derived/") for damage in named
            ), f"{mutation}: verify found {named}"
            found[f"{at_start} at start, {at_use} at use"] += 1
        else:
            found[f"the log: {at_start}"] += 1
    assert verify_index(path) == []
    print(f"\n{kind}: {sum(found.values())} mutations, {dict(found)}")
