"""Which revision of each index is open, read when Prometheus asks: a revision that is gone leaves no series behind."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.engine import Engine


class IndexCollector(Collector):
    """Shows the open indexes of an engine.

    Args:
        engine: The indexes.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read what is open now; looks for no new revision.

        Yields:
            The metrics.
        """
        info = GaugeMetricFamily("nattribute_index_info", "The open revision.", labels=["index", "revision"])
        rows = GaugeMetricFamily("nattribute_index_rows", "Training examples of the open revision.", labels=["index"])
        for served in self._engine.open_now():
            info.add_metric([served.name, served.index.revision], 1)
            rows.add_metric([served.name], served.index.num_rows)
        yield info
        yield rows
