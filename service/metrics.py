"""What /metrics shows to Prometheus. One registry for one app; docs/operations.md has the table of all of it.

Every label takes its values from the code or from the settings (routes, codes, names of served indexes), never from a
request: what a client sends cannot make a new time series.
"""

from collections.abc import Callable, Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from service import __version__
from service.engine import Engine
from service.errors import JobStoreError, ServiceError
from service.index_collector import IndexCollector
from service.observer import Observer
from service.query_resolver import SKETCH_TIMING
from service.schemas.answers import AnswerFacts
from service.workplace import Workplace

#: From half a millisecond, the shortest stages, to the default deadline.
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
#: A round takes 64 questions at most.
REQUESTS_OF_A_ROUND = (1, 2, 4, 8, 16, 32, 64)
FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
#: What a request goes through, in order: the first and the last seen by the gate, the others told by the answer.
STAGES = ("queue", SKETCH_TIMING, "prepare", "search", "select", "rescore", "represents", "encode")
JOB_STATES = ("queued", "running", "done", "failed", "cancelled")

#: What is asked of an index and takes a worker.
QUESTIONS = ("attributions", "attributions/batch", "scores", "information", "sketches")
#: Why connections are cut: what of a request or of an answer the client owed, or that there were too many.
OWED = ("head", "body", "answer", "too_many")


class Metrics(Observer):
    """Counters, gauges and histograms of one app.

    Attributes:
        requests: Answers by method, route and status.
        request_seconds: Time to answer by route.
        stage_seconds: Time in each stage of a request.
        refusals: Problems by code.
        cancelled: Requests that were given up because their client went away, by route.
        previews: Stored previews sent, by index and kind.
        cut: Connections cut because of what their client owed: ``head`` or ``body`` of a request, reading an
            ``answer``; or because there were ``too_many``.
    """

    def __init__(self, workplace: Workplace) -> None:
        """Register the metrics in a registry of their own.

        Args:
            workplace: Whose queue is shown.
        """
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = self._counter("nattribute_requests", "Answers sent.", "method", "route", "status")
        self.request_seconds = self._histogram("nattribute_request_seconds", "Time to answer.", SECONDS, "route")
        self.stage_seconds = self._histogram(
            "nattribute_stage_seconds", "Time of a request in one stage.", SECONDS, "stage"
        )
        self.refusals = self._counter(
            "nattribute_refusals", "Problems told, those of a batch's items and of streams included.", "code"
        )
        self.cut = self._counter("nattribute_connections_cut", "Connections cut, by what their client owed.", "owed")
        self.cancelled = self._counter(
            "nattribute_requests_cancelled", "Requests given up because their client went away.", "route"
        )
        self.previews = self._counter("nattribute_previews", "Stored previews sent.", "index", "kind")
        self._attributions = self._counter("nattribute_attributions", "Attributions answered.", "index", "method")
        self._attribution_seconds = self._histogram(
            "nattribute_attribution_seconds",
            "Time of an attribution in its worker.",
            SECONDS,
            "index",
            "method",
        )
        self._sketch_seconds = self._histogram(
            "nattribute_query_sketch_seconds", "Time to sketch an example that a client sent.", SECONDS, "index"
        )
        self._round_requests = self._histogram(
            "nattribute_round_requests", "Selections that shared a round of scans.", REQUESTS_OF_A_ROUND, "index"
        )
        self._round_seconds = self._histogram(
            "nattribute_round_seconds", "Time to serve a round of scans.", SECONDS, "index"
        )
        self._passes = self._counter(
            "nattribute_full_passes", "Vectors compared with a whole pool of candidates.", "index", "method"
        )
        self._rows = self._counter("nattribute_rows_scored", "Rows multiplied with something.", "index", "method")
        self._bytes = self._counter(
            "nattribute_scanned_bytes", "Bytes of sketches, codes and kernel columns read.", "index", "method"
        )
        self._fraction = self._histogram(
            "nattribute_information_fraction",
            "InfoGain of the selected set over that of all comparable examples.",
            FRACTIONS,
            "index",
            "method",
        )
        self._revisions = self._counter("nattribute_index_revisions", "Revisions opened, the first included.", "index")
        # Shown before the first of their kind.
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        for owed in OWED:
            self.cut.labels(owed)
        for question in QUESTIONS:
            self.cancelled.labels(f"/v1/indexes/{{index}}/{question}")
        refusals: list[type[ServiceError]] = [ServiceError, *ServiceError.__subclasses__()]
        for kind in refusals:
            self.refusals.labels(kind.code)  # else the first failure would be no increase, and raise no alert
        self._show("nattribute_workers", "Requests that may compute at the same time.", lambda: workplace.workers)
        self._show("nattribute_workers_busy", "Requests that compute now.", lambda: workplace.busy)
        self._show("nattribute_queue_capacity", "Requests that may wait for a worker.", lambda: workplace.queue)
        self._show("nattribute_queue_waiting", "Requests that wait for a worker now.", lambda: workplace.waiting)
        build = Gauge("nattribute_build_info", "The running version.", ["version"], registry=self._registry)
        build.labels(__version__).set(1)

    def watch_service(self, ready: Callable[[], bool], in_flight: Callable[[], int]) -> None:
        """Show whether the service takes requests, and how many it answers.

        Args:
            ready: Says whether it does.
            in_flight: Counts those let in and not yet answered in full.
        """
        self._show("nattribute_ready", "Whether /readyz answers 200.", ready)
        self._show("nattribute_requests_in_flight", "Requests let in and not answered in full.", in_flight)

    def watch_engine(self, engine: Engine) -> None:
        """Show which revisions are open.

        Args:
            engine: The indexes.
        """
        self._registry.register(IndexCollector(engine))

    def watch_jobs(self, count: Callable[[str], int]) -> None:
        """Show how many jobs there are in every state.

        Args:
            count: Counts the jobs in a state.
        """

        def counted(state: str) -> float:
            try:
                return count(state)
            except JobStoreError:  # the store cannot be read now: that is no number of jobs
                return float("nan")

        jobs = Gauge("nattribute_jobs", "Jobs in the store.", ["state"], registry=self._registry)
        for state in JOB_STATES:
            jobs.labels(state).set_function(partial(counted, state))

    def watch_revisions(self, indexes: Iterable[str], refused: Callable[[str], bool]) -> None:
        """Show which indexes are served at an old revision because the new one is refused.

        Args:
            indexes: Their names.
            refused: Says of an index whether it is.
        """
        gauge = Gauge(
            "nattribute_revision_refused",
            "1 while a new revision of an index is refused and the old one answers.",
            ["index"],
            registry=self._registry,
        )
        for index in indexes:
            gauge.labels(index).set_function(partial(_one_if, refused, index))

    def text(self) -> bytes:
        """Return everything in the Prometheus text format."""
        return generate_latest(self._registry)

    def opened(self, index: str, revision: str) -> None:
        """Count a revision."""
        self._revisions.labels(index).inc()
        for histogram in (self._sketch_seconds, self._round_requests, self._round_seconds):
            histogram.labels(index)  # shown before the first of its kind

    def attributed(self, index: str, facts: AnswerFacts, seconds: float) -> None:
        """Count an attribution: its stages, its scans, how much of what is known it told."""
        labels = (index, facts.method)
        self._attributions.labels(*labels).inc()
        self._attribution_seconds.labels(*labels).observe(seconds)
        for stage, milliseconds in facts.timings_ms.items():
            if stage in STAGES:
                self.stage_seconds.labels(stage).observe(milliseconds / 1000)
        self._passes.labels(*labels).inc(facts.search.index_queries)
        self._rows.labels(*labels).inc(facts.search.rows_scored)
        self._bytes.labels(*labels).inc(facts.search.bytes_read)
        if facts.information.fraction is not None:
            self._fraction.labels(*labels).observe(facts.information.fraction)

    def sketched(self, index: str, seconds: float) -> None:
        """Count a sketch."""
        self._sketch_seconds.labels(index).observe(seconds)

    def round_served(self, index: str, requests: int, seconds: float) -> None:
        """Count a round."""
        self._round_requests.labels(index).observe(requests)
        self._round_seconds.labels(index).observe(seconds)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

    def _show(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(name, text, registry=self._registry).set_function(value)


def _one_if(true_of: Callable[[str], bool], name: str) -> float:
    return float(true_of(name))
