"""What Prometheus reads of a server."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from smidgen.serving.engine import Engine


class Measures:
    """The numbers of one server."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        process = Info("smidgen_process", "Whose numbers these are.", registry=self.registry)
        process.info({"host": socket.gethostname(), "pid": str(os.getpid())})
        self.seconds = Histogram(
            "smidgen_request_seconds",
            "From a request for images, one that streams not counted, to its last one.",
            registry=self.registry,
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300),
        )
        self.registry.register(_OfEngine(engine))


class _OfEngine(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine, counts = self._engine, self._engine.counts
        gauges = {
            "smidgen_images_waiting": ("Images that wait.", engine.waiting),
            "smidgen_images_active": ("Images that form.", engine.active),
            "smidgen_deltas_resident": ("Deltas in slots.", engine.pools.resident),
            "smidgen_pools": ("Kinds of deltas in the network.", len(engine.pools.pools)),
        }
        counters = {
            "smidgen_images": ("Images drawn.", counts.images),
            "smidgen_images_failed": ("Images cancelled, late or failed.", counts.failed),
            "smidgen_ticks": ("Steps of all images that form.", counts.ticks),
            "smidgen_calls": (
                "Calls of the network; more than ticks where deltas are mixed that cannot share "
                "a batch.",
                counts.calls,
            ),
            "smidgen_rows": ("Rows of all calls of the network.", counts.rows),
            "smidgen_busy_seconds": ("Seconds in which images formed.", counts.seconds),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(name, text, value=value)
