"""Sends a journal's entries from a thread of its own, so that no server can keep a stage waiting."""

import os
import threading
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from steermoe.training.journal import Entry, Journal

if TYPE_CHECKING:
    from steermoe.training.store import Store

PAUSE = 15.0  # seconds between tries while the store does not answer
PATIENCE = 30.0  # seconds that the end of a stage waits for, as long as nothing gets on
SAMPLING = 10.0  # seconds between samples of the machine


class Sender:
    """Sends what `journal` holds and what others left behind, in order, until it is closed.

    Args:
        root: the project's root.
        journal: of this process; the sender closes it, and removes it when all of it has been sent.
    """

    def __init__(self, root: Path, journal: Journal) -> None:
        self.root, self.journal = root, journal
        self._wake, self._end = threading.Event(), threading.Event()
        self._told: set[str] = set()
        self._sent = threading.Condition()
        self._store: Store | None = None
        self._is_lost = False
        self._sample: Callable[[], Entry] | None = None
        self._taken = time.monotonic() - SAMPLING  # the first sample at once: short runs have one, too
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def send(self, entry: Entry) -> None:
        """Write an entry down, to be sent soon."""
        self.journal.append(entry)
        self._wake.set()

    def sample(self, take: Callable[[], Entry]) -> None:
        """From now on, add an entry of `take` every few seconds."""
        self._sample = take
        self._wake.set()

    def drain(self) -> bool:
        """Wait until all is sent, or nothing gets on; True when all is."""
        before, since = self.journal.position.sent, time.monotonic()
        with self._sent:
            while self.journal.pending() and self._thread.is_alive() and not self._is_lost:
                self._sent.wait(0.2)
                if self.journal.position.sent != before:
                    before, since = self.journal.position.sent, time.monotonic()
                if time.monotonic() - since > PATIENCE:
                    break
        return not self.journal.pending()

    def close(self) -> None:
        """Try once more what has not been sent; what is left stays in the journal."""
        self._end.set()
        self._wake.set()
        before, since = self.journal.position.sent, time.monotonic()
        while self._thread.is_alive() and time.monotonic() - since < PATIENCE:
            self._thread.join(0.2)
            if self.journal.position.sent != before:
                before, since = self.journal.position.sent, time.monotonic()
        if self._thread.is_alive() or self.journal.pending():
            self._tell(
                f"{len(self.journal.pending())} entries are left, to be sent by the next stage that logs"
            )

    def _work(self) -> None:
        import steermoe.training.store  # noqa: F401 (seconds; and it settles how MLflow is imported elsewhere)

        while True:
            last = self._end.is_set()  # read before the try: what was written until then is part of it
            self._try()
            if last:
                break
            if self._is_lost:
                self._end.wait(PAUSE)
            else:
                self._wake.wait(SAMPLING)
                self._wake.clear()
        self.journal.close(remove=not self.journal.pending())

    def _try(self) -> None:
        from steermoe.training.store import DeletedError, Store

        try:
            if self._sample is not None and (
                self._end.is_set() or time.monotonic() - self._taken >= SAMPLING
            ):
                self.journal.append(self._sample())
                self._taken = time.monotonic()
            if self._store is None or self._is_lost:
                self._store = self._store or Store(self.root)
                self._send_left_behind(self._store)
            self._deliver(self._store, self.journal)
        except Exception as error:  # whatever it is: the stage goes on
            if isinstance(error, DeletedError):
                self._tell_once(str(error))
            elif not self._is_lost:
                self._tell(
                    f"it cannot be reached ({_first_line(error)}); what is logged is kept and sent later"
                )
            self._is_lost = True
        else:
            if self._is_lost:
                self._tell("it answers again, and has got everything")
            self._is_lost = False
        with self._sent:
            self._sent.notify_all()

    def _send_left_behind(self, store: "Store") -> None:
        from steermoe.training.store import DeletedError

        for journal in Journal.left_behind(self.journal.folder.parent):
            try:
                count = len(journal.pending())
                self._deliver(store, journal)
                if count:
                    self._tell(f"sent {count} entries that an earlier stage had left")
            except DeletedError as error:  # of this journal's run; it must not hold up the others
                self._tell_once(str(error))
            finally:
                journal.close(remove=not journal.pending())

    def _deliver(self, store: "Store", journal: Journal) -> None:
        """Send a journal's entries, metrics that follow each other together; refused ones are told and dropped."""
        from steermoe.training.store import UnreachableError

        for kind, group in groupby(journal.pending(), key=lambda entry: entry["do"]):
            entries = list(group)
            for some in [entries] if kind == "metrics" else [[entry] for entry in entries]:
                try:
                    store.perform(some, journal.folder, journal.position)
                except (UnreachableError, OSError):
                    raise
                except Exception as error:  # whatever it is, it must not hold up what comes after it
                    if kind not in self._told:
                        self._tell(f"it refused {kind!r} ({_first_line(error)}); that is left out")
                    self._told.add(kind)
                journal.advance(some)

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._tell(message)
        self._told.add(message)

    def _tell(self, message: str) -> None:
        where = os.environ.get("MLFLOW_TRACKING_URI") or self.root / "mlflow.db"
        print(f"MLflow ({where}): {message}", flush=True)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
