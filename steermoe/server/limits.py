"""How much a server takes on: per request, at once, and in a batch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
        max_bytes: of a request's body.
        max_seconds: of a recording.
        max_tokens: of an answer, and of one that names no limit of its own.
        max_text: characters of prompts and tool definitions of a request.
        upload_seconds: in which a request's body must have come.
        requests: being answered at once, uploads and waiting included.
        queue: recordings (pieces of long ones included) that wait for the model.
        queue_seconds: of audio that waits, and of recordings being answered; 64 kB of memory a second.
        batch_rows, max_batch_seconds: of a batch; seconds with padding.
        linger: seconds that a lone request waits for others to share its batch.
        decoders: recordings that are decoded at once.
        decode_seconds: of processor time, and three times that by the clock, for decoding one.
        decode_bytes: of memory for decoding one, beside the samples that it gives away block by block.
        drain_seconds: for finishing what was accepted, after the signal to stop.
    """

    max_bytes: int = 25 * 2**20
    max_seconds: float = 1800.0
    max_tokens: int = 200
    max_text: int = 16_000
    upload_seconds: float = 60.0
    requests: int = 128
    queue: int = 256
    queue_seconds: float = 7200.0
    batch_rows: int = 16
    max_batch_seconds: float = 120.0
    linger: float = 0.01
    decoders: int = 2
    decode_seconds: int = 20
    decode_bytes: int = 512 * 2**20
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0 and name != "linger":
                raise ValueError(f"limits: found {name} {value}; legal: more than 0")
