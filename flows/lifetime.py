"""The life of a flow's run on this machine: begun, ended as a whole, or left behind and taken up again.

A run holds a lock on `.runs/flows/<id>` while it lives and deletes the file when it ends in order. A file that nobody
holds is a run whose process died, or whose machine did; `take_up` schedules it again.
"""

import fcntl
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Cancelled

from flows import checkout, commands

RUNS = Path(".runs") / "flows"
TAKE_UPS = 5  # times that a run is begun; then it stays crashed
WATCH_SECONDS = 1.0
BEGIN_SECONDS = 60.0  # of a flow's process, until it holds its lock
LINGER_SECONDS = 20.0  # for telling the server


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
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
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

    What was cancelled meanwhile stays cancelled, and what was begun TAKE_UPS times stays crashed.
    """
    taken = []
    for file in sorted((root / RUNS).glob("*-*")):
        with file.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            over, name = _take_up(file.name)
            if name is not None:
                taken.append(name)
            if (
                over
            ):  # else the file stays until the run has been seen to go on: its worker may yet report a crash
                checkout.forget(root, file.name)
                file.unlink(missing_ok=True)
    return taken


def _take_up(identity: str) -> tuple[bool, str | None]:
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
            if run.deployment_id is None or run.run_count >= TAKE_UPS:
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
