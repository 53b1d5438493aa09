"""An index whose rows were removed, listed or purged, answers as one that never had them: every method, bit for bit."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indexer.attributor import Attributor, CandidateFilter, Question
from indexer.attributor.coreset import Coreset, CoresetQuestion
from indexer.attributor.errors import UnknownIdError
from indexer.derive import derive
from sketchstore.reader import Index, open_index, verify_index
from sketchstore.remove import remove_rows
from sketchstore.writer import IndexWriter
from tests import oracles
from tests.index_factory import make_contents, make_index, make_plan, write_contents

GONE = [0, 1, 17, 31, 32, 63, 64, 100, 101, 102, 159]
ROWS = 160


def three_indexes(tmp_path: Path, derived: bool = True, **options: Any) -> list[Index]:
    """The same rows three times: never with the removed ones, with them listed, and purged."""
    settings: dict[str, Any] = {"num_rows": ROWS, "dim": 24, "view": "margin"} | options
    indexes = []
    for name, purge in (("listed", False), ("purged", True)):
        index = make_index(tmp_path / name, **settings)
        remove_rows(index, [f"train:{row}" for row in GONE], purge=purge)
        indexes.append(open_index(index.path))
    whole, left = make_contents(make_plan(**settings)), np.delete(np.arange(ROWS), GONE)
    sketches = {view: values[left] for view, values in whole.sketches.items()}
    exponents = {name: view.scale_exponent for name, view in indexes[0].manifest.views.items()}
    with IndexWriter.create(tmp_path / "never", make_plan(**settings | {"num_rows": len(left)})) as writer:
        writer.set_scales(exponents)
        write_contents(writer, replace(whole, sketches=sketches, labels=whole.labels[left]))
        writer.write_columns({"one_minus_p": np.linspace(0.0, 0.9, ROWS)[left]})
        indexes.insert(0, open_index(writer.publish()))
    if derived:
        for index in indexes:
            derive(index)
    return indexes


def told(answer: Any) -> dict[str, Any]:
    """What an answer says, without names of the index and of its examples, and without the clock."""
    facts = asdict(answer)
    for hit in facts["hits"]:
        del hit["id"]
        hit["represents"] = hit["represents"]["count"]
    return {name: value for name, value in facts.items() if name not in ("index", "timings_ms")}


@pytest.mark.parametrize("engine", ["faiss", "brute_force"])
@pytest.mark.parametrize("dim", [24, 192], ids=["gram, codes, heads", "kernel"])
@pytest.mark.parametrize("view", ["margin", "own", "class"])
def test_every_method_answers_alike(tmp_path, view, dim, engine):
    # dim 24 < rows: the gram form, 8-bit codes; 16 directions of heads need d of 128.
    indexes = three_indexes(tmp_path, view=view, dim=dim)
    attributors = [Attributor(index, engine=engine) for index in indexes]
    for method in ("infogain_approx", "infogain", "infoloss", "random"):
        for row in (1, 3):
            answers = []
            for each in attributors:
                query = each.resolve_query_row(row)
                answers.append(told(each.answer(Question(query=query, method=method, budget=8, relative_noise=0.3))))
            assert answers[0] == answers[1] == answers[2]
            assert len(answers[0]["hits"]) == 8


def test_codes_and_heads_of_many_rows_are_of_the_rows_that_are_left(tmp_path):
    indexes = three_indexes(tmp_path, dim=128)
    kinds = {entry.kind for entry in indexes[1].derived.entries().values()}
    assert {"codes", "heads", "spectrum", "leverages", "faiss"} <= kinds
    assert verify_index(indexes[1].path) == []
    answers = []
    for index in indexes:
        each = Attributor(index, engine="faiss")
        answers.append(told(each.answer(Question(query=each.resolve_query_row(2), budget=20, relative_noise=1.0))))
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("purge", [False, True])
def test_nats_are_those_of_the_oracle_on_the_rows_that_are_left(tmp_path, purge):
    index = make_index(tmp_path, view="margin", num_rows=60, dim=16)
    kept = index.view("margin").sketches(torch.from_numpy(np.delete(np.arange(60), [3, 4, 50])))
    remove_rows(index, ["train:3", "train:4", "train:50"], purge=purge)
    each = Attributor(open_index(index.path), engine="brute_force")
    query = each.resolve_query_row(1)
    answer = each.answer(Question(query=query, method="infogain", budget=5, relative_noise=0.5))
    noise = 0.5 * float(kept.square().sum(1).mean())
    assert answer.noise_variance == pytest.approx(noise, rel=1e-12)
    picks = oracles.greedy_infogain(query.sketch, kept, noise, 5)
    assert [hit.row for hit in answer.hits] == picks
    assert answer.information.infogain_nats == pytest.approx(oracles.info_gain(query.sketch, kept[picks], noise))
    assert answer.information.available_nats == pytest.approx(oracles.info_gain(query.sketch, kept, noise))
    assert answer.information.infoloss_nats == pytest.approx(oracles.info_loss(query.sketch, kept, picks, noise))


@pytest.mark.parametrize("rule", ["infogain", "infogain_approx", "infoloss"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_coresets_are_alike(tmp_path, rule, dtype):
    picks = []
    for index in three_indexes(tmp_path, derived=False, dtype=dtype):
        question = CoresetQuestion(budget=12, rule=rule, relative_noise=0.5, quota_per_label=5)
        picks.append([(pick.row, pick.label, pick.score) for pick in Coreset(index, question).picks()])
    assert picks[0] == picks[1] == picks[2]


@pytest.mark.parametrize("purge", [False, True])
def test_a_withdrawn_example_can_be_neither_asked_about_nor_filtered_by(tmp_path, purge):
    index = make_index(tmp_path, view="margin")
    remove_rows(index, ["train:9"], purge=purge)
    each = Attributor(open_index(index.path), engine="brute_force")
    said = (
        "no example.*'train:9', or the one that had it was withdrawn and purged; its ids"
        if purge
        else (r"the example with the id 'train:9' was withdrawn from the training set \(indexer remove\)$")
    )
    with pytest.raises(UnknownIdError, match=said):
        each.resolve_train_id("train:9")
    query = each.resolve_query_row(1)
    with pytest.raises(UnknownIdError, match=said):
        each.answer(Question(query=query, filter=CandidateFilter(ids=["train:9"]), budget=1))
    with pytest.raises(UnknownIdError, match=said):
        each.scores(query, ids=["train:9"])
    excluding = Question(query=query, filter=CandidateFilter(exclude_ids=["train:9", "train:8"]), budget=57)
    if purge:
        with pytest.raises(UnknownIdError, match=said):
            each.answer(excluding)
    else:  # it is out already, and a client's list stays a good one
        assert "train:8" not in [hit.id for hit in each.answer(excluding).hits]
        assert (
            each.scores(query, ["train:8"], exclude_ids=["train:9"]).members == each.scores(query, ["train:8"]).members
        )
        with pytest.raises(UnknownIdError, match="'train:999'"):
            each.answer(Question(query=query, filter=CandidateFilter(exclude_ids=["train:999"]), budget=1))
    everything = each.answer(
        Question(query=query, budget=59, filter=CandidateFilter(where={"source": "web"}), clip_budget=True)
    )
    assert "train:9" not in [hit.id for hit in everything.hits]
    assert len(everything.hits) == 29  # 30 odd rows, one of them withdrawn
