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
        self._requests = Counter("steermoe_requests", "Requests answered", where, registry=only)
        self._latency = Histogram(
            "steermoe_request_seconds", "Duration of requests", ("path",), registry=only, buckets=LATENCIES
        )
        batch = "Recordings in progress when one was answered"
        self._batch_rows = Histogram("steermoe_batch_rows", batch, registry=only, buckets=BATCHES)
        self._audio_seconds = Counter("steermoe_audio_seconds", "Audio answered by the model", registry=only)
        self._compute_seconds = Counter("steermoe_compute_seconds", "Time spent by the model", registry=only)
        self._tokens = Counter("steermoe_tokens", "Tokens generated", registry=only)
        Gauge("steermoe_queue_length", "Recordings that wait", registry=only).set_function(waiting)
        Gauge("steermoe_running", "Recordings being answered", registry=only).set_function(running)

    def add_request(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(path, method, str(status)).inc()
        self._latency.labels(path).observe(seconds)

    def add_answer(self, rows: int, audio_seconds: float, compute_seconds: float, tokens: int) -> None:
        """Count a recording that was answered, one of so many rows."""
        self._batch_rows.observe(rows)
        self._audio_seconds.inc(audio_seconds)
        self._compute_seconds.inc(compute_seconds)
        self._tokens.inc(tokens)

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self._registry)
