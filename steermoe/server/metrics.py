"""Metrics of the server for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCIES = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server, in a registry of their own.

    Args:
        waiting, running: return the number of recordings in the queue, and being answered.
    """

    def __init__(self, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        self._registry = only = CollectorRegistry()
        where = ("path", "method", "status")
        self.requests = Counter("steermoe_requests", "Requests answered", where, registry=only)
        self.latency = Histogram(
            "steermoe_request_seconds", "Duration of requests", ("path",), registry=only, buckets=LATENCIES
        )
        batch = "Recordings in progress when one was answered"
        self.batch_rows = Histogram("steermoe_batch_rows", batch, registry=only, buckets=BATCHES)
        self.audio_seconds = Counter("steermoe_audio_seconds", "Audio answered by the model", registry=only)
        self.compute_seconds = Counter("steermoe_compute_seconds", "Time spent by the model", registry=only)
        self.tokens = Counter("steermoe_tokens", "Tokens generated", registry=only)
        Gauge("steermoe_queue_length", "Recordings that wait", registry=only).set_function(waiting)
        Gauge("steermoe_running", "Recordings being answered", registry=only).set_function(running)

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self._registry)
