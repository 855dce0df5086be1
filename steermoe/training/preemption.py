"""SIGTERM as a wish: the step under way is finished and kept before the training ends."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class Preemption:
    """Takes SIGTERM within a `with` block; `requested` tells whether it came.

    Outside the main thread, where Python allows no handler, SIGTERM keeps its effect.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
