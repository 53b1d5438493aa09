"""The Python client against a real service process on loopback."""

import inspect
import typing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from service.async_client_jobs import AsyncJobHandle
from service.calls import AttributionOptions, InformationOptions, ScoresOptions
from service.client import AsyncClient, Client, NotOurServiceError, ProblemError
from service.client_jobs import JobHandle
from service.schemas.answers import AnswerFacts, Hit, StreamStart
from service.schemas.groups import InformationRequest
from service.schemas.jobs import Job, Progress
from service.schemas.problem import ProblemItem, make_problem
from service.schemas.questions import AttributionRequest, RowQuery, ScoresRequest

ROW = {"type": "row", "split": "query", "row": 1}


def test_the_options_are_the_fields_of_the_requests():
    for options, request, own in (
        (AttributionOptions, AttributionRequest, {"query"}),
        (ScoresOptions, ScoresRequest, {"query", "ids"}),
        (InformationOptions, InformationRequest, {"query", "queries", "groups"}),
    ):
        assert set(typing.get_type_hints(options)) == set(request.model_fields) - own


def test_both_clients_have_the_same_methods_with_the_same_arguments():
    def methods(client: type) -> dict[str, list[str]]:
        found = inspect.getmembers(client, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in found if not name.startswith("__")}

    assert methods(Client) == methods(AsyncClient)
    assert methods(JobHandle) == methods(AsyncJobHandle)


@pytest.mark.slow
def test_the_client_asks_everything(server: str):
    with Client(server) as client:
        assert client.ready()
        assert client.info().indexes == ["own"]
        assert [card.name for card in client.indexes()] == ["own"]
        assert client.index("own").num_rows == 60
        answer = client.attribute("own", ROW, budget=5, relative_noise=1.0, rescore=["infoloss"])
        assert len(answer.hits) == 5
        assert answer == answer.model_validate(answer.model_dump())
        again = client.attribute("own", RowQuery(type="row", row=1), budget=5, relative_noise=1.0)
        assert again.hits == answer.hits
        parts = list(client.stream("own", ROW, budget=5, relative_noise=1.0))
        assert isinstance(parts[0], StreamStart)
        assert isinstance(parts[-1], AnswerFacts)
        assert [part for part in parts if isinstance(part, Hit)] == answer.hits
        results = client.batch("own", [{"query": ROW, "budget": 2}, {"query": ROW, "budget": 0}])
        assert [result.status for result in results] == [200, 422]
        scores = client.scores("own", ROW, [hit.id for hit in answer.hits], relative_noise=1.0)
        assert scores.set.infoloss_nats == pytest.approx(answer.information.infoloss_nats, rel=1e-9)
        one = client.information("own", ROW, "source", relative_noise=1.0, removal_order=2)
        assert [group.name for group in one.groups] == ["book", "web"]
        assert (
            client.information("own", ROW, {"by": "source"}, relative_noise=1.0, removal_order=2).groups == one.groups
        )
        with pytest.raises(ProblemError, match="/groups"):
            client.information("own", ROW, {"few": "train:1"})
        two = client.information("own", [ROW, RowQuery(type="row", row=2)], {"a": ["train:1", "train:2"]})
        assert (two.num_queries, two.groups[0].num_rows) == (2, 2)
        (sketch,) = client.sketches("own", [ROW])
        assert len(sketch.values) == 16
        assert client.examples("own", limit=3).total == 60
        named = client.examples("own", ids=["train:7", "train:3"])
        assert ([example.id for example in named.examples], named.total) == (["train:7", "train:3"], 2)
        with pytest.raises(ProblemError, match="train:60"):
            client.examples("own", ids=["train:60"])
        (first, *_) = client.attribute("own", ROW, budget=1, include_metadata=True).hits
        assert first.metadata == client.example("own", first.row).metadata
        assert client.example("own", 2, "query").id == "query:2"
        assert client.content("own", 2)[0] == "image/png"


JOB = {"type": "attributions", "index": "own", "requests": [{"query": ROW, "budget": 2, "relative_noise": 1.0}] * 30}


@pytest.mark.slow
def test_the_client_hands_in_a_job_and_waits_for_it(server: str, tmp_path: Path):
    with Client(server) as client:
        seen: list[Job] = []
        job = client.submit(JOB, idempotency_key="of-the-client's-test")
        assert job.wait(on_progress=seen.append, timeout=60).state == "done"
        # All items may be there a moment before the job is over: two reports of 30, of two states.
        told = [(now.progress.done, now.state != "queued", now.state == "done") for now in seen]
        assert told == sorted(set(told))
        assert told[-1] == (30, True, True)
        assert client.submit(JOB, idempotency_key="of-the-client's-test").id == job.id
        items = list(job.items())
        assert [item["position"] for item in items] == list(range(30))
        assert job.result().items == items
        job.save_parquet(tmp_path / "hits.parquet")
        assert pq.read_table(tmp_path / "hits.parquet").num_rows == 60
        assert client.job(job.id).wait(timeout=5) == job.refresh()
        assert job.cancel().state == "done"
        assert client.jobs(state="done").jobs[0].id == job.id
        with pytest.raises(ProblemError, match="unknown_job"):
            client.job("nothing")
        with pytest.raises(ProblemError, match="/budget"):
            client.submit({"type": "coreset", "index": "own"})


def test_a_client_waits_no_longer_than_it_was_told(tmp_path: Path):
    job = Job(
        id="a", type="coreset", index="own", revision="r", state="running", progress=Progress(done=1, total=2),
        created_at="", started_at=None, finished_at=None, expires_at=None, cancel_requested=False,
        result_url="", events_url="", warnings=[], problem=None,
    )  # fmt: skip
    with Client("http://127.0.0.1:9") as client, pytest.raises(TimeoutError, match="is not over within"):
        JobHandle(client.http, job).wait(timeout=0.5)


@pytest.mark.slow
def test_a_refusal_is_an_exception_that_holds_the_problem(server: str):
    with Client(server) as client:
        with pytest.raises(ProblemError, match="unknown_index") as caught:
            client.attribute("nothing", ROW)
        assert caught.value.problem.status == 404
        with pytest.raises(ProblemError, match="/query/row"):
            client.attribute("own", {**ROW, "row": 99})
        with pytest.raises(ProblemError, match="/query/row"):
            list(client.stream("own", {**ROW, "row": 99}))
        with pytest.raises(ProblemError, match="no row 99"):
            client.content("own", 99)


def test_a_mistake_in_a_request_is_found_before_it_leaves():
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(ProblemError, match="/budget") as caught:
            client.attribute("own", ROW, budget=0)
        assert (caught.value.problem.status, caught.value.problem.request_id) == (422, "")
        with pytest.raises(ProblemError, match="did you mean budget") as caught:
            client.attribute("own", ROW, bugdet=3)  # type: ignore[call-arg]
        assert caught.value.problem.errors[0].pointer == "/bugdet"
        with pytest.raises(ProblemError, match="unknown_field"):
            client.scores("own", ROW, ["train:1"], method="trak")  # type: ignore[call-arg]
        with pytest.raises(ProblemError, match="/queries/0/type"):
            client.sketches("own", [{"row": 1}])
        with pytest.raises(ProblemError, match="/requests"):
            client.batch("own", [])


def test_a_problem_says_each_thing_once():
    item = ProblemItem(code="unknown_row", detail="row 9 does not exist.", pointer="/query/row", allowed={"le": 3})
    one = ProblemError(make_problem(422, "unknown_row", "?", "row 9 does not exist.", "id", [item]))
    assert str(one) == "422 unknown_row: /query/row: row 9 does not exist. (allowed: {'le': 3})"
    two = ProblemError(make_problem(422, "unknown_row", "?", "row 9 does not exist.; and so on", "id", [item, item]))
    assert str(two).splitlines()[0] == "422 unknown_row: 2 mistakes"
    assert str(two).count("row 9 does not exist.") == 2
    none = ProblemError(make_problem(503, "not_ready", "Not ready", "the service is starting", "id"))
    assert str(none) == "503 not_ready: the service is starting"


def test_something_that_is_not_this_service_is_named_so():
    import httpx

    transport = httpx.MockTransport(lambda request: httpx.Response(502, text="bad gateway"))
    with Client("http://elsewhere", transport=transport) as client, pytest.raises(NotOurServiceError, match="502"):
        client.info()


@pytest.mark.slow
@pytest.mark.anyio
async def test_the_asynchronous_client_does_the_same(server: str, tmp_path: Path):
    async with AsyncClient(server) as client:
        assert await client.ready()
        assert (await client.info()).indexes == [card.name for card in await client.indexes()]
        assert (await client.index("own")).num_rows == 60
        answer = await client.attribute("own", ROW, budget=3)
        parts = [part async for part in client.stream("own", ROW, budget=3)]
        assert [part for part in parts if isinstance(part, Hit)] == answer.hits
        assert [result.status for result in await client.batch("own", [{"query": ROW}])] == [200]
        assert len((await client.scores("own", ROW, [answer.hits[0].id])).members) == 1
        assert len((await client.information("own", ROW, "label")).groups) == 3
        assert len(await client.sketches("own", [ROW])) == 1
        assert (await client.examples("own")).total == 60
        assert (await client.example("own", 1)).row == 1
        assert (await client.content("own", 1))[0] == "image/png"
        job = await client.submit(JOB)
        seen: list[Job] = []
        assert (await job.wait(on_progress=seen.append, timeout=60)).state == seen[-1].state == "done"
        assert [item["position"] async for item in job.items()] == list(range(30))
        assert len((await job.result()).items) == 30
        await job.save_parquet(tmp_path / "hits.parquet")
        assert pq.read_table(tmp_path / "hits.parquet").num_rows == 60
        assert (await (await client.job(job.id)).cancel()) == await job.refresh()
        assert (await client.jobs()).total >= 1
        with pytest.raises(ProblemError):
            await client.index("nothing")
