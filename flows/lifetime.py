"""The life of a flow's run on this machine: begun, ended as a whole, or left behind and taken up again.

A run holds a lock on `.runs/flows/<id>` while it lives and deletes the file when it ends in order. A file that nobody
holds is a run whose process died, or whose machine did; `take_up` schedules it again. Only deaths that the worker's
keeper (`python -m flows worker`) outlived count against a run: stopped flows and dead machines are none of its doing.
"""

import fcntl
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Cancelled

from flows import checkout, commands

RUNS = Path(".runs") / "flows"
TAKE_UPS = 5  # of a run whose process died by itself; then it stays crashed
KEEPER = "STEERMOE_KEEPER"  # which keeper's worker began this process; other after every start
ANY = "any"  # keeper of a process in whose environment none is named: its deaths count
WATCH_SECONDS = 1.0
BEGIN_SECONDS = 60.0  # of a flow's process, until it holds its lock
LINGER_SECONDS = 20.0  # for telling the server


@dataclass(frozen=True)
class Record:
    """What the file of a run says.

    Attributes:
        keeper: whose worker began its process; empty once the death of that process is dealt with.
        deaths: processes of the run that died while their keeper lived.
    """

    keeper: str = ""
    deaths: int = 0

    @classmethod
    def read(cls, file: Path) -> Self:
        """That of a file; a new one if there is nothing in it, or it was killed amid the write."""
        with suppress(FileNotFoundError, ValueError):
            return cls(**json.loads(file.read_text()))
        return cls()

    def write(self, file: Path) -> None:
        """Into the file itself: another in its place would not be locked."""
        file.write_text(json.dumps(asdict(self)))

    def died(self, keeper: str) -> Self:
        """After the death of the process, found by a keeper; to find it twice is to find it once."""
        return replace(self, keeper="", deaths=self.deaths + (self.keeper in (keeper, ANY)))


@contextmanager
def alive(root: Path) -> Iterator[tuple[str, str]]:
    """The present flow's run, as long as its body runs: its id, and its name as an experiment may have it.

    However the body is left (an error, a cancel, a signal), its commands end. When the worker dies, this process ends,
    too: nobody could cancel it any more.
    """
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None, "not in a flow"
    identity, name = str(context.flow_run.id), context.flow_run.name
    file = root / RUNS / identity
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        replace(Record.read(file), keeper=os.environ.get(KEEPER, ANY)).write(file)
        _end_with_the_worker()
        try:
            yield identity, re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or identity
        except Exception:
            file.unlink(missing_ok=True)
            raise
        finally:
            commands.end_all()
        file.unlink(missing_ok=True)


def _end_with_the_worker() -> None:
    if "PREFECT__WORKER_NAME" not in os.environ:  # called by hand
        return
    worker = os.getppid()

    def watch() -> None:
        while os.getppid() == worker:
            time.sleep(WATCH_SECONDS)
        commands.end_all()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LINGER_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)  # its output goes nowhere, on which Prefect may wait for ever

    threading.Thread(target=watch, daemon=True).start()


def take_up(root: Path) -> list[str]:
    """Schedule the runs again that were left behind on this machine: their names.

    What was cancelled meanwhile stays cancelled, and what died more than TAKE_UPS times by itself stays crashed.
    """
    taken = []
    for file in sorted((root / RUNS).glob("*-*")):
        with file.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            record = Record.read(file).died(os.environ.get(KEEPER, ANY))
            record.write(file)
            over, name = _take_up(file.name, record.deaths)
            if name is not None:
                taken.append(name)
            if (
                over
            ):  # else the file stays until the run has been seen to go on: its worker may yet report a crash
                checkout.forget(root, file.name)
                file.unlink(missing_ok=True)
    return taken


def _take_up(identity: str, deaths: int) -> tuple[bool, str | None]:
    """Whether the run is over for good, and its name if it was scheduled."""
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        run = client.read_flow_run(identity)  # type: ignore[arg-type]
        state = run.state
        assert state is not None
        if state.is_cancelling():
            client.set_flow_run_state(run.id, Cancelled(message="its process is gone"), force=True)
            return True, None
        if state.is_completed() or state.is_failed() or state.is_cancelled():
            return True, None
        if state.is_crashed() or _is_stale(state):
            if run.deployment_id is None or deaths > TAKE_UPS:
                return True, None
            again = AwaitingRetry(message="its process was gone; it goes on from its checkpoints")
            client.set_flow_run_state(run.id, again, force=True)
            return False, run.name
        return False, None
    return True, None


def _is_stale(state: State) -> bool:
    """Says that a process runs, and for longer than one needs to begin."""
    begun = datetime.now(UTC) - state.timestamp
    return not state.is_scheduled() and begun.total_seconds() > BEGIN_SECONDS
