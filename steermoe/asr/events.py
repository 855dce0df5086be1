"""Results of live audio, and how late they are."""

import bisect
import time
from dataclasses import dataclass
from typing import Literal

from steermoe.asr.transcript import Segment

KEPT = 4096  # blocks whose arrival is remembered


@dataclass(frozen=True)
class Event:
    """A result of live audio.

    Attributes:
        kind: `partial` until the stretch has ended; then `final`.
        number: of the stretch; a later event with the same number replaces this one.
        segment: text, times and confidence; a text that is empty takes back what a partial result said.
        latency: seconds from the arrival of the last speech in it to this event.
    """

    kind: Literal["partial", "final"]
    number: int
    segment: Segment
    latency: float


class Arrivals:
    """When live audio was there, so that a result can tell how late it is."""

    def __init__(self) -> None:
        self._seconds: list[float] = []  # of audio
        self._times: list[float] = []  # when so much was there

    def add(self, seconds: float, moment: float) -> None:
        """So much audio, counted from the start, was there at that moment (`time.monotonic()`)."""
        self._seconds.append(seconds)
        self._times.append(moment)
        del self._seconds[:-KEPT], self._times[:-KEPT]

    def event(self, kind: Literal["partial", "final"], number: int, segment: Segment) -> Event:
        """An event that happens now."""
        place = min(bisect.bisect_left(self._seconds, segment.end), len(self._times) - 1)
        return Event(kind, number, segment, time.monotonic() - self._times[place])
