"""Spans of requests and of their stages by OpenTelemetry; imported only where --otel asks for it.

A request's span continues the trace that a W3C ``traceparent`` header names. Under it are ``queue``, for every
attribution ``attribution`` with its stages, and ``encode``. The stages of an attribution take turns (a selection goes
on after each of its scans), so their spans stand one after the other with the time that each took in all.

Spans hold names of routes, indexes, methods and codes, and counts: nothing that a client sent.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import Scope

from service import __version__
from service.metrics import STAGES
from service.problems import PROBLEM_CODE
from service.request_clock import RequestClock
from service.schemas.answers import AnswerFacts
from service.tracing import Tracing

PROPAGATOR = TraceContextTextMapPropagator()
#: The headers read; baggage is not, it would carry what clients say into every span's export.
CONTEXT_HEADERS = ("traceparent", "tracestate")
NANO = 1_000_000_000


class OtelTracing(Tracing):
    """Makes spans.

    Args:
        provider: Where they go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("nattribute", __version__)
        self._epoch = time.time_ns() - time.perf_counter_ns()

    @contextmanager
    def request(self, scope: Scope, clock: RequestClock) -> Iterator[Mapping[str, str]]:
        """Trace a request for as long as the block runs."""  # noqa: DOC402
        headers = Headers(scope=scope)
        carrier = {name: headers[name] for name in CONTEXT_HEADERS if name in headers}
        with self._tracer.start_as_current_span(
            "request", PROPAGATOR.extract(carrier), SpanKind.SERVER, record_exception=False
        ) as span:
            try:
                yield {"trace_id": trace.format_trace_id(span.get_span_context().trace_id)}
            finally:
                route = getattr(scope.get("route"), "path", "unmatched")
                span.update_name(f"{clock.method} {route}")
                span.set_attributes(
                    {"http.request.method": clock.method, "http.route": route, "request_id": scope["request_id"]}
                )
                if PROBLEM_CODE in scope:
                    span.set_attribute("error.type", scope[PROBLEM_CODE])
                if clock.queue_seconds is not None and clock.queued_at is not None:
                    self._span("queue", clock.queued_at, clock.queue_seconds)
                if clock.computed_at is not None and clock.written_at is not None:
                    self._span("encode", clock.computed_at, clock.written_at - clock.computed_at)

    def answered(self, status: int) -> None:
        """Note the status of the request's answer."""
        span = trace.get_current_span()
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(StatusCode.ERROR)

    def attributed(self, index: str, facts: AnswerFacts, seconds: float) -> None:
        """Make the spans of an attribution that has just been answered; none outside of requests, as in jobs."""
        if not trace.get_current_span().get_span_context().is_valid:
            return
        ended = time.perf_counter()
        span = self._tracer.start_span("attribution", start_time=self._at(ended - seconds))
        span.set_attributes(
            {
                "nattribute.index": index,
                "nattribute.revision": facts.index.revision,
                "nattribute.method": facts.method,
                "nattribute.full_passes": facts.search.index_queries,
                "nattribute.rows_scored": facts.search.rows_scored,
                "nattribute.scanned_bytes": facts.search.bytes_read,
                "nattribute.infogain_nats": facts.information.infogain_nats,
            }
        )
        stages = [(name, facts.timings_ms[name] / 1000) for name in STAGES if name in facts.timings_ms]
        began = ended - sum(taken for _, taken in stages)
        with trace.use_span(span, end_on_exit=False):
            for name, taken in stages:
                self._span(name, began, taken)
                began += taken
        span.end(self._at(ended))

    def close(self) -> None:
        """Send what was not sent yet, and stop."""
        self._provider.shutdown()

    def _span(self, name: str, began: float, seconds: float) -> None:
        self._tracer.start_span(name, start_time=self._at(began)).end(self._at(began + seconds))

    def _at(self, moment: float) -> int:
        # Of perf_counter, in nanoseconds since 1970.
        return self._epoch + round(moment * NANO)


def exporting_tracing() -> OtelTracing:
    """Make tracing that sends its spans over OTLP, as the variables OTEL_* of the environment say.

    Returns:
        The tracing.
    """
    # What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say wins over this.
    resource = Resource({"service.name": "nattribute", "service.version": __version__}).merge(Resource.create())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTracing(provider)
