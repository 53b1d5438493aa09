"""A running service answers from one revision at a time, and from the new one as soon as it is published."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from indexer.derive import derive
from service.app import create_app
from service.engine import Engine, open_engine
from service.settings import Settings
from sketchstore.default_noise import store_default_noise
from sketchstore.reader import open_index
from sketchstore.remove import remove_rows

QUESTION = {"query": {"type": "row", "split": "query", "row": 1}, "budget": 5}


@pytest.fixture
def path(index_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(index_root / "margin", tmp_path / "margin"))


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the moment, nor on which engine searched and what that costs."""
    return {key: value for key, value in answer.items() if key not in ("timings_ms", "search", "warnings")}


@pytest.mark.anyio
@pytest.mark.parametrize("check", ["use", "start"])
@pytest.mark.parametrize("purge", [False, True])
async def test_a_withdrawn_row_is_in_no_later_answer(path: Path, check: str, purge: bool) -> None:
    settings = Settings(index=(f"margin={path}",), check=check)
    app = create_app(settings, Engine.open(settings))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http,
    ):
        before = (await http.post("/v1/indexes/margin/attributions", json=QUESTION)).json()
        withdrawn = before["hits"][0]["id"]
        report = remove_rows(open_index(path), [withdrawn], purge=purge)
        after = (await http.post("/v1/indexes/margin/attributions", json=QUESTION)).json()
        assert (before["index"]["revision"], after["index"]["revision"]) != (report.revision, report.revision)
        assert after["index"]["revision"] == report.revision
        assert withdrawn not in [hit["id"] for hit in after["hits"]]
        assert after["information"]["available_nats"] < before["information"]["available_nats"]
        page = (await http.get("/v1/indexes/margin/examples", params={"limit": 50, "offset": 10})).json()
        assert page["total"] == 59
        assert withdrawn not in [example["id"] for example in page["examples"]]
        card = (await http.get("/v1/indexes/margin")).json()
        assert (card["num_rows"], card["removed_rows"]) == (59, 0 if purge else 1)
        asked = {"query": {"type": "train_id", "id": withdrawn}, "budget": 3}
        refused = await http.post("/v1/indexes/margin/attributions", json=asked)
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (422, "unknown_id")
        scores = {"query": QUESTION["query"], "ids": [withdrawn]}
        assert (await http.post("/v1/indexes/margin/scores", json=scores)).status_code == 422
        filtered = {**QUESTION, "filter": {"exclude_ids": [withdrawn]}}
        # A client's list that is older than the removal stays a good one; of what was purged, nothing is known.
        status = (await http.post("/v1/indexes/margin/attributions", json=filtered)).status_code
        assert status == (422 if purge else 200)


def test_answers_during_removals_are_each_of_one_revision(path: Path, tmp_path: Path) -> None:
    gone = [["train:3"], ["train:10", "train:11"], ["train:40"], ["train:59"]]
    purges = [False, True, False, True]
    expected: dict[str, dict[str, Any]] = {}
    twin = Path(shutil.copytree(path, tmp_path / "twin" / "margin"))

    def remember() -> None:
        answer = open_engine(twin).attribute(QUESTION)
        expected[answer.index.revision] = comparable(answer.model_dump(mode="json"))

    remember()
    for ids, purge in zip(gone, purges, strict=True):
        remove_rows(open_index(twin), ids, purge=purge)
        remember()
    engine, done = open_engine(path), threading.Event()

    def ask(_: int) -> list[dict[str, Any]]:
        answers = []
        while not done.is_set():
            answers.append(comparable(engine.attribute(QUESTION).model_dump(mode="json")))
        return answers

    with ThreadPoolExecutor(3) as pool:
        asking = pool.map(ask, range(3))
        for ids, purge in zip(gone, purges, strict=True):
            index = open_index(path)
            derive(index)  # so that there are files to mix up
            remove_rows(index, ids, purge=purge)
        done.set()
        answers = [answer for each in asking for answer in each]
    last = engine.attribute(QUESTION)
    answers.append(comparable(last.model_dump(mode="json")))
    assert last.index.revision == open_index(path).revision
    assert {answer["index"]["revision"] for answer in answers} <= set(expected)
    for answer in answers:
        # With spectra stored or without, nats come from the same float64 sums to the last digits.
        told = expected[answer["index"]["revision"]]
        assert [hit["id"] for hit in answer["hits"]] == [hit["id"] for hit in told["hits"]]
        assert answer["information"]["available_nats"] == pytest.approx(told["information"]["available_nats"], rel=1e-9)


def test_a_tuned_noise_is_in_force_without_a_restart(path: Path) -> None:
    engine = open_engine(path)
    assert "untuned" in engine.attribute(QUESTION).warnings[0]
    store_default_noise(open_index(path), 0.25, {"method": "by hand"})
    answer = engine.attribute(QUESTION)
    assert (answer.relative_noise, answer.warnings) == (0.25, [])


def test_an_index_whose_directory_is_gone_is_served_as_it_was(path: Path) -> None:
    engine = open_engine(path)
    before = engine.attribute(QUESTION)
    path.rename(path.with_name("elsewhere"))
    assert engine.attribute(QUESTION).hits == before.hits
