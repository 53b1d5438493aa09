"""The same request on the same revision has the same answer, to the bit: alone, in a batch, in a job, under load."""

import itertools
import json
import random
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.client import Client
from tests.index_factory import make_index
from tests.reliability.lengths import rounds
from tests.reliability.restarted_service import RestartedService

TIMES = rounds(12, 1000)
VIEWS = ["own", "margin"][rounds(1, 0) :]  # the short form asks one index
BATCH = 8
ROWS, DIM = 600, 64


def requests() -> list[dict[str, Any]]:
    """One request for every rule, with filters, near-duplicates and rescoring among them."""
    row = {"type": "row", "row": 3}
    return [
        {"query": row, "budget": 12, "relative_noise": 0.1, "rescore": ["infogain", "infoloss"]},
        {"query": row, "method": "infogain", "budget": 12, "relative_noise": 1.0},
        {"query": row, "method": "infoloss", "budget": 6, "relative_noise": 1.0, "rescore": ["infogain"]},
        {"query": {"type": "train_id", "id": "train:17"}, "budget": 9, "filter": {"where": {"source": "web"}}},
        {"query": row, "budget": 12, "strategy": "literal", "filter": {"exclude_ids": ["train:5", "train:40"]}},
    ]


def other(chance: random.Random) -> dict[str, Any]:
    """Anything else that may be in flight."""
    return {
        "query": {"type": "row", "row": chance.randrange(20)},
        "method": chance.choice(["infogain_approx", "infogain", "infoloss"]),
        "budget": chance.randint(1, 20),
        "relative_noise": chance.choice([0.01, 1.0, 100.0]),
    }


def without_timings(answer: Any) -> str:
    """The bits of an answer but for how long it took."""
    return json.dumps({name: value for name, value in answer.items() if name != "timings_ms"}, sort_keys=True)


@pytest.fixture(scope="module", params=VIEWS)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("same")
    index = make_index(
        folder, name="same", view=request.param, num_rows=ROWS, dim=DIM, num_queries=20, dtype="float16", faiss="Flat"
    )
    service = RestartedService(index.path, folder)
    service.start()
    yield service.url
    service.stop()


@pytest.mark.slow
def test_the_same_request_has_the_same_answer_alone_in_a_batch_in_a_job_and_under_load(url: str) -> None:
    stop = threading.Event()
    disturbed = itertools.count()

    def disturb(seed: int) -> None:
        chance = random.Random(seed)
        with Client(url) as client:
            while not stop.is_set():
                client.batch("same", [other(chance) for _ in range(3)])
                next(disturbed)

    with Client(url) as client:
        http, path = client.http, "/v1/indexes/same"

        def ask(asked: dict[str, Any], resource: str = "/attributions") -> Any:
            response = http.post(path + resource, json=asked)
            assert response.status_code == 200, response.text
            return response.json()

        alone = [without_timings(ask(asked)) for asked in requests()]
        threads = [threading.Thread(target=disturb, args=(seed,), daemon=True) for seed in range(1)]
        for thread in threads:
            thread.start()
        chance = random.Random(7)
        compared = 0
        while compared < TIMES * len(alone):
            for number, asked in enumerate(requests()):
                for _ in range(7):
                    assert without_timings(ask(asked)) == alone[number]
                places = sorted(chance.sample(range(BATCH), 7))
                batch = [asked if place in places else other(chance) for place in range(BATCH)]
                results = ask({"requests": batch}, "/attributions/batch")["results"]
                for place in places:
                    assert without_timings(results[place]["body"]) == alone[number]
                compared += len(places)  # as often alone
        job = client.submit(
            {"type": "attributions", "index": "same", "requests": requests() + [other(chance) for _ in range(20)]}
        )
        job.wait(timeout=120)
        for number, item in zip(range(len(alone)), job.items(), strict=False):
            assert without_timings(item["body"]) == alone[number]
        stop.set()
        for thread in threads:
            thread.join(60)
    print(
        f"{len(alone)} requests, {compared} answers alone and as many in batches of {BATCH}: as the first, to the bit"
    )
    assert next(disturbed) > 0


@pytest.mark.slow
def test_nats_of_a_set_and_of_groups_are_the_same_again(url: str) -> None:
    query = {"type": "row", "row": 3}
    label = httpx.get(f"{url}/v1/indexes/same/examples/3?split=query").json()["predicted_label"]
    rows = httpx.get(f"{url}/v1/indexes/same/examples?limit=600").json()["examples"]
    ids = [row["id"] for row in rows if row["label"] == label][:30]
    asked = {
        "scores": {"query": query, "ids": ids, "relative_noise": 1.0},
        "information": {"query": query, "groups": {"by": "source"}, "relative_noise": 1.0, "removal_order": 2},
    }
    with httpx.Client() as http:
        for resource, body in asked.items():
            found = {
                without_timings(http.post(f"{url}/v1/indexes/same/{resource}", json=body).json())
                for _ in range(max(20, TIMES // 10))
            }
            assert len(found) == 1
