"""Spans of real requests, in the SDK's memory; and that without --otel nothing that makes spans is even imported."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.app import create_app
from service.engine import Engine
from service.settings import Settings
from service.tracing import Tracing, make_tracing

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

ROW = {"type": "row", "split": "query", "row": 1}
CANARY = "canary-4711"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = ["prepare", "search", "select", "rescore", "represents"]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def traced(settings: Settings, engine: Engine, exporter: InMemorySpanExporter):
    from service.otel_tracing import OtelTracing

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(settings, engine, OtelTracing(provider))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        yield client
    create_app(settings, engine)  # the engine of all tests tells this exporter nothing more


def children(spans: tuple[ReadableSpan, ...], parent: ReadableSpan) -> list[ReadableSpan]:
    own = [span for span in spans if span.parent is not None and span.parent.span_id == parent.context.span_id]
    return sorted(own, key=lambda span: span.start_time or 0)


def names(spans: list[ReadableSpan]) -> list[str]:
    return [span.name for span in spans]


@pytest.mark.anyio
async def test_a_request_continues_its_trace_and_has_a_span_for_every_stage(
    traced: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "mine"}
    response = await traced.post("/v1/indexes/own/attributions", json={"query": ROW, "budget": 3}, headers=headers)
    answer = response.json()
    spans = exporter.get_finished_spans()
    (request,) = [span for span in spans if span.kind.name == "SERVER"]
    assert request.name == "POST /v1/indexes/{index}/attributions"
    assert f"{request.context.trace_id:032x}" == TRACE
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/indexes/{index}/attributions",
        "http.response.status_code": 200,
        "request_id": "mine",
    }
    assert names(children(spans, request)) == ["queue", "attribution", "encode"]
    attribution = children(spans, request)[1]
    assert attribution.attributes is not None
    assert attribution.attributes["nattribute.index"] == "own"
    assert attribution.attributes["nattribute.infogain_nats"] == answer["information"]["infogain_nats"]
    stages = children(spans, attribution)
    assert sorted(names(stages)) == sorted(STAGES)
    for stage in stages:
        assert stage.start_time is not None
        assert stage.end_time is not None
        milliseconds = (stage.end_time - stage.start_time) / 1e6
        assert milliseconds == pytest.approx(answer["timings_ms"][stage.name], abs=1e-3)
        assert stage.end_time <= (request.end_time or 0)


@pytest.mark.anyio
async def test_refusals_name_their_code_and_spans_hold_nothing_that_was_sent(
    traced: httpx.AsyncClient, exporter: InMemorySpanExporter, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"traceparent": CANARY, "baggage": f"key={CANARY}", "Authorization": f"Bearer {CANARY}"}
    asked = {"query": ROW, CANARY: CANARY}
    await traced.post("/v1/indexes/own/attributions", json=asked, headers=headers)
    await traced.post(f"/v1/indexes/{CANARY}/attributions", json={"query": ROW}, headers=headers)
    await traced.request("CANARY", f"/{CANARY}?{CANARY}", headers=headers)

    def fail(index: str | None = None) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(engine, "card", fail)
    await traced.get("/v1/indexes/own", headers=headers)
    spans = exporter.get_finished_spans()
    assert CANARY not in "".join(span.to_json() for span in spans)
    requests = [span for span in spans if span.kind.name == "SERVER"]
    codes = [span.attributes["error.type"] for span in requests if span.attributes is not None]
    assert codes == ["unknown_field", "unknown_index", "not_found", "internal_error"]
    assert [span.status.is_ok for span in requests] == [True, True, True, False]
    assert len({span.context.trace_id for span in requests}) == 4  # no trace was named, so each begins its own


@pytest.mark.anyio
async def test_the_attributions_of_a_batch_and_of_a_stream_belong_to_their_request(
    traced: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    asked = {"query": ROW, "method": "random", "budget": 2}
    await traced.post("/v1/indexes/own/attributions/batch", json={"requests": [asked] * 3})
    await traced.post("/v1/indexes/own/attributions", json=asked, headers={"Accept": "text/event-stream"})
    spans = exporter.get_finished_spans()
    batch, stream = [span for span in spans if span.kind.name == "SERVER"]
    assert sorted(names(children(spans, batch))) == ["attribution"] * 3 + ["encode", "queue"]
    assert sorted(names(children(spans, stream))) == ["attribution", "queue"]


def test_without_otel_neither_the_sdk_nor_an_exporter_is_imported(index_root: Path) -> None:
    program = (
        "import sys\n"
        "from service.app import create_app\n"
        "from service.settings import Settings\n"
        f"create_app(Settings(index=({str(index_root / 'own')!r},)))\n"
        "loaded = [name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))]\n"
        "assert not loaded, loaded\n"
        "assert 'service.otel_tracing' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_otel_without_its_extra_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "service.otel_tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ValueError, match=r"pip install 'nattribute\[otel\]'"):
        make_tracing(Settings(otel=True))
    assert type(make_tracing(Settings())) is Tracing
