"""What /metrics shows to Prometheus: requests, attributions, sketches, the queue. One registry for one app."""

from collections.abc import Callable, Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.workplace import Workplace

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters and histograms of one app.

    Attributes:
        requests: Answers by method, route and status.
        request_seconds: Time to answer by route.
        cancelled: Requests that were given up because their client went away, by route.
        attributions: Attributions answered by index and method.
        attribution_seconds: Time of an attribution in its worker, by index and method.
        sketch_seconds: Time to sketch one request's examples, by index.
    """

    def __init__(self, workplace: Workplace) -> None:
        """Register the metrics in a registry of their own.

        Args:
            workplace: Whose queue is shown.
        """
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "nattribute_requests", "Answers.", ["method", "route", "status"], registry=self._registry
        )
        self.request_seconds = Histogram(
            "nattribute_request_seconds", "Time to answer.", ["route"], buckets=SECONDS, registry=self._registry
        )
        self.cancelled = Counter(
            "nattribute_requests_cancelled",
            "Requests given up because their client went away.",
            ["route"],
            registry=self._registry,
        )
        self.attributions = Counter(
            "nattribute_attributions", "Attributions answered.", ["index", "method"], registry=self._registry
        )
        self.attribution_seconds = Histogram(
            "nattribute_attribution_seconds",
            "Time of an attribution in its worker.",
            ["index", "method"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.sketch_seconds = Histogram(
            "nattribute_query_sketch_seconds",
            "Time to sketch the examples of one request.",
            ["index"],
            buckets=SECONDS,
            registry=self._registry,
        )
        busy = Gauge("nattribute_workers_busy", "Requests that compute now.", registry=self._registry)
        busy.set_function(lambda: workplace.busy)
        waiting = Gauge("nattribute_queue_waiting", "Requests that wait now.", registry=self._registry)
        waiting.set_function(lambda: workplace.waiting)

    def watch_jobs(self, count: Callable[[str], int]) -> None:
        """Show how many jobs wait and run.

        Args:
            count: Counts the jobs in a state.
        """
        jobs = Gauge("nattribute_jobs", "Jobs by state.", ["state"], registry=self._registry)
        for state in ("queued", "running"):
            jobs.labels(state).set_function(partial(count, state))

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


def _one_if(true_of: Callable[[str], bool], name: str) -> float:
    return float(true_of(name))
