"""What /metrics shows after real requests, and that docs/operations.md lists exactly that."""

import re
import shutil
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.settings import Settings
from sketchstore.codes_build import build_codes
from tests.index_factory import make_index
from tests.service.conftest import ROWS

pytestmark = pytest.mark.anyio

PAGE = Path("docs/operations.md")
ROW = {"type": "row", "split": "query", "row": 1}
Key = tuple[str, frozenset[tuple[str, str]]]


async def scraped(http: httpx.AsyncClient) -> dict[Key, float]:
    """Every sample by its name and labels."""
    text = (await http.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> Key:
    return f"nattribute_{name}", frozenset(labels.items())


async def test_an_attribution_is_counted_in_every_stage_and_by_its_scans(http: httpx.AsyncClient) -> None:
    answers = []
    before = await scraped(http)
    for method in ("infogain_approx", "infogain"):
        asked = {"query": ROW, "method": method, "budget": 5, "available": True}
        answers.append((await http.post("/v1/indexes/own/attributions", json=asked)).json())
    after = await scraped(http)

    def grown(name: str, **labels: str) -> float:
        return after[key(name, **labels)] - before.get(key(name, **labels), 0.0)

    for answer in answers:
        labels = {"index": "own", "method": answer["method"]}
        assert grown("attributions_total", **labels) == 1
        assert grown("attribution_seconds_count", **labels) == 1
        assert grown("full_passes_total", **labels) == answer["search"]["index_queries"]
        assert grown("rows_scored_total", **labels) == answer["search"]["rows_scored"] > 0
        assert grown("scanned_bytes_total", **labels) == answer["search"]["bytes_read"] > 0
        assert grown("information_fraction_count", **labels) == 1
        assert grown("information_fraction_sum", **labels) == pytest.approx(answer["information"]["fraction"])
    for stage in ("queue", "prepare", "search", "select", "rescore", "represents", "encode"):
        assert grown("stage_seconds_count", stage=stage) == 2, stage
    selecting = sum(answer["timings_ms"]["select"] for answer in answers) / 1000
    assert grown("stage_seconds_sum", stage="select") == pytest.approx(selecting)
    assert after[key("stage_seconds_count", stage="sketch")] == 0
    assert grown("request_seconds_count", route="/v1/indexes/{index}/attributions") == 2


async def test_streams_batches_and_jobs_are_counted_like_single_requests(http: httpx.AsyncClient) -> None:
    asked = {"query": ROW, "method": "random", "budget": 2}
    counted = key("attributions_total", index="own", method="random")
    before = (await scraped(http)).get(counted, 0.0)
    await http.post("/v1/indexes/own/attributions", json=asked, headers={"Accept": "text/event-stream"})
    assert (await scraped(http))[counted] == before + 1
    bad = asked | {"budget": ROWS * 10}
    results = (await http.post("/v1/indexes/own/attributions/batch", json={"requests": [asked, asked, bad]})).json()[
        "results"
    ]
    found = await scraped(http)
    assert found[counted] == before + 3
    assert found[key("refusals_total", code=results[2]["body"]["code"])] == 1
    job = (
        await http.post("/v1/jobs", json={"type": "attributions", "index": "own", "requests": [asked, asked]})
    ).json()
    while (await http.get(f"/v1/jobs/{job['id']}")).json()["state"] != "done":
        pass
    found = await scraped(http)
    assert found[counted] == before + 5
    assert [found[key("jobs", state=state)] for state in ("queued", "running", "done", "failed")] == [0, 0, 1, 0]


async def test_refusals_are_counted_by_code_and_no_request_makes_a_label(http: httpx.AsyncClient) -> None:
    canary = "canary-4711"
    await http.get(f"/{canary}")
    await http.post(f"/v1/indexes/{canary}/attributions", json={"query": ROW, canary: canary})
    await http.post("/v1/indexes/own/attributions", json={"query": ROW, canary: canary})
    await http.post("/v1/indexes/own/attributions", json={"query": ROW, "method": canary})
    await http.post("/v1/indexes/own/attributions", content=b"{", headers={"Content-Type": "application/json"})
    await http.request("CANARY4711", "/v1/info", headers={"X-Request-ID": canary})
    text = (await http.get("/metrics")).text
    assert "canary" not in text.lower()
    found = await scraped(http)
    for code in ("not_found", "unknown_index", "unknown_field", "invalid_value", "invalid_json", "method_not_allowed"):
        assert found[key("refusals_total", code=code)] == 1, code


async def test_what_alerts_look_for_is_shown_before_it_happens(http: httpx.AsyncClient) -> None:
    alerts = Path("docker/monitoring/alerts.yml").read_text(encoding="utf-8")
    codes = {code for found in re.findall(r'code=~?"([^"]*)"', alerts) for code in found.split("|")}
    assert {"internal_error", "damaged_index", "queue_full"} <= codes
    found = await scraped(http)
    for code in codes:
        assert found[key("refusals_total", code=code)] == 0, code


async def test_previews_revisions_and_readiness_are_shown(http: httpx.AsyncClient) -> None:
    card = (await http.get("/v1/indexes/own")).json()
    await http.get("/v1/indexes/own/examples/3/content")
    await http.get("/v1/indexes/own/examples/2/content?split=query")
    found = await scraped(http)
    assert found[key("previews_total", index="own", kind="image")] == 1
    assert found[key("previews_total", index="own", kind="text")] == 1
    assert found[key("index_info", index="own", revision=card["revision"])] == 1
    assert found[key("index_rows", index="own")] == ROWS
    assert found[key("index_revisions_total", index="own")] == 1
    assert found[key("ready")] == 1
    assert found[key("requests_in_flight")] == 0
    assert found["process_open_fds", frozenset()] > 0


async def test_the_page_lists_exactly_the_metrics_there_are(http: httpx.AsyncClient) -> None:
    for asked in ({"query": ROW}, {"query": ROW, "budget": 0}):
        await http.post("/v1/indexes/own/attributions", json=asked)
    await http.get("/v1/indexes/own/examples/3/content")
    shown = {}
    for family in text_string_to_metric_families((await http.get("/metrics")).text):
        if family.name.startswith("nattribute_") and not family.name.endswith("_created"):
            labels = {name for sample in family.samples for name in sample.labels} - {"le"}
            shown[family.name + ("_total" if family.type == "counter" else "")] = (family.type, labels)
    rows = re.findall(r"^\| `(nattribute_\w+)` \| (\w+) \| ([\w, ]*?) *\| ", PAGE.read_text(encoding="utf-8"), re.M)
    listed = {name: (kind, set(labels.split(", ")) - {""}) for name, kind, labels in rows}
    assert listed == shown


async def test_shared_rounds_of_scans_are_shown_with_their_size(tmp_path: Path) -> None:
    index = make_index(tmp_path, name="coded", view="own", num_rows=2000, dim=64, num_queries=8, faiss="Flat")
    build_codes(index, "own")
    app = create_app(Settings(index=(f"coded={tmp_path / 'coded'}",)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http:
        asked = [{"query": ROW | {"row": row}, "budget": 4} for row in range(8)]
        answer = await http.post("/v1/indexes/coded/attributions/batch", json={"requests": asked})
        assert {each["status"] for each in answer.json()["results"]} == {200}
        found = await scraped(http)
    rounds, selections = (found[key(f"round_requests_{part}", index="coded")] for part in ("count", "sum"))
    assert 0 < rounds <= selections
    assert found[key("round_seconds_count", index="coded")] == rounds
    served = app.state.service.engine.open_now()[0].attributor
    assert (rounds, selections) == (served._coarse.rounds.rounds, served._coarse.rounds.served)
    searching = sum(each["body"]["timings_ms"]["search"] for each in answer.json()["results"])
    assert searching > 0
    assert found[key("stage_seconds_sum", stage="search")] == pytest.approx(searching / 1000)


async def test_a_new_revision_replaces_the_old_one_in_what_is_shown(tmp_path: Path) -> None:
    make_index(tmp_path, name="turned", view="own", num_rows=ROWS, dim=16, num_queries=8)
    app = create_app(Settings(index=(f"turned={tmp_path / 'turned'}",)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http:
        before = (await http.get("/v1/indexes/turned")).json()["revision"]
        shutil.rmtree(tmp_path / "turned")
        make_index(tmp_path, name="turned", view="own", num_rows=ROWS + 1, dim=16, num_queries=8)
        answer = (await http.post("/v1/indexes/turned/attributions", json={"query": ROW})).json()
        found = await scraped(http)
    revision = answer["index"]["revision"]
    assert revision != before
    shown = [dict(labels)["revision"] for name, labels in found if name == "nattribute_index_info"]
    assert shown == [revision]
    assert found[key("index_rows", index="turned")] == ROWS + 1
    assert found[key("index_revisions_total", index="turned")] == 2
    assert found[key("attributions_total", index="turned", method="infogain_approx")] == 1
