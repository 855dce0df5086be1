"""What a server does, counted for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCIES = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server, in a registry of their own.

    Attributes:
        requests: by path, method and status. `latency`: seconds from a request's first byte to its last, by path.
        batch_rows: recordings at work when one of them was answered, itself among them.
        dropped: those whose client was gone before their turn.
        audio_seconds, compute_seconds: heard, and spent by the model on it.
        tokens: written.

    Args:
        waiting: recordings in the queue now, and their seconds.
    """

    def __init__(self, waiting: Callable[[], tuple[int, float]]) -> None:
        self.registry = CollectorRegistry()

        registry = self.registry
        self.requests = Counter(
            "steermoe_requests", "Requests answered", ("path", "method", "status"), registry=registry
        )
        self.latency = Histogram(
            "steermoe_request_seconds",
            "Duration of requests",
            ("path",),
            buckets=LATENCIES,
            registry=registry,
        )
        self.batch_rows = Histogram(
            "steermoe_batch_rows",
            "Recordings at work when one was answered",
            buckets=BATCHES,
            registry=registry,
        )
        self.dropped = Counter(
            "steermoe_dropped", "Recordings whose client was gone before their turn", registry=registry
        )
        self.audio_seconds = Counter(
            "steermoe_audio_seconds", "Audio that the model heard", registry=registry
        )
        self.compute_seconds = Counter(
            "steermoe_compute_seconds", "Time that the model took", registry=registry
        )
        self.tokens = Counter("steermoe_tokens", "Tokens written", registry=registry)
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "queue_length": ("Recordings that wait", lambda: waiting()[0]),
            "queue_audio_seconds": ("Audio that waits", lambda: waiting()[1]),
            "real_time_factor": ("Time of the model for a second of audio, so far", self.real_time_factor),
        }
        for name, (text, value) in gauges.items():
            Gauge(f"steermoe_{name}", text, registry=registry).set_function(value)
        self._audio = self._compute = 0.0

    def heard(self, rows: int, audio: float, compute: float, tokens: int) -> None:
        """Count an answer: recordings at work, its audio, seconds of the model since the one before, tokens."""
        self.batch_rows.observe(rows)
        self.audio_seconds.inc(audio)
        self.compute_seconds.inc(compute)
        self.tokens.inc(tokens)
        self._audio += audio
        self._compute += compute

    def real_time_factor(self) -> float:
        """Seconds that the model took for a second of audio, over all batches; 0 before the first."""
        return self._compute / self._audio if self._audio else 0.0

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
