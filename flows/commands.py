"""Commands of a flow's run: supervised, in slots, their output in Prefect's log while they run."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from flows import supervise

PROGRESS = re.compile(r"\bstep (\d+)/(\d+)\b")  # as a trainer says it
TAIL = 15  # lines of a failed command that its error repeats
PROGRESS_SECONDS = 2.0  # between two updates


class TimeLimitError(RuntimeError):
    """A command took longer than it may."""


class EndedError(RuntimeError):
    """The flow's run ends, and its commands with it."""


_running: set[subprocess.Popen[str]] = set()
_lock = threading.Lock()
_is_ending = threading.Event()


def run(
    command: list[str],
    folder: Path,
    root: Path,
    environment: Mapping[str, str],
    slots: int,
    limit: float | None,
) -> None:
    """Run a command to its end, in a task of Prefect's.

    Args:
        command: program and arguments.
        folder: where it runs.
        root: the project, whose slots it takes.
        environment: added to this process' own.
        slots: how many it takes; it waits for them.
        limit: seconds that it may take once it has them; None: any.

    Raises:
        TimeLimitError: it took longer, and was ended.
        EndedError: it was ended together with the flow's run.
        RuntimeError: it failed; with the last lines of its output.
    """
    options = ["--root", str(root), "--folder", str(folder), "--slots", str(slots), "--disposable"]
    if limit is not None:
        options += ["--limit", str(limit)]
    tail: deque[str] = deque(maxlen=TAIL)
    with _begun([sys.executable, "-m", "flows.supervise", *options, "--", *command], environment) as process:
        assert process.stdout is not None
        logger, progress = get_run_logger(), Progress()
        for line in process.stdout:
            tail.append(line.rstrip())
            if tail[-1]:
                logger.info(tail[-1])
            progress.read(line)
        code = process.wait()
    if code == supervise.TIME_OVER:
        raise TimeLimitError(
            f"{' '.join(command)} took longer than {limit:g} s and was ended; what it had finished is kept, "
            "the same run goes on from there"
        )
    if _is_ending.is_set():
        raise EndedError(f"{' '.join(command)} was ended with the flow's run")
    if code != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n" + "\n".join(tail))


@contextmanager
def _begun(command: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A supervisor in a session of its own: a signal to the flow's process group reaches it through the pipe only."""
    with _lock:
        if _is_ending.is_set():
            raise EndedError("the flow's run ends")
        process = subprocess.Popen(
            command, env=os.environ | environment, text=True, errors="replace", start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        _running.add(process)
    try:
        yield process
    finally:
        with suppress(OSError):
            _close(process)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0 if _is_ending.is_set() else None)
        if process.returncode is not None:
            with suppress(ProcessLookupError, PermissionError):  # if the supervisor itself was killed
                os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()
        with _lock:
            _running.discard(process)


def end_all() -> None:
    """Tell every supervisor to end its command. They do so by themselves, whatever becomes of this process."""
    with _lock:
        _is_ending.set()
        for process in _running:
            _close(process)


def is_ending() -> bool:
    """Whether the flow's run ends before its time."""
    return _is_ending.is_set()


def _close(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()


class Progress:
    """Prefect's progress bar of a task, from lines with `step 20/450`."""

    def __init__(self) -> None:
        self._artifact: UUID | None = None
        self._told, self._percent, self._is_lost = 0.0, -1.0, False

    def read(self, line: str) -> None:
        """Take a line of output. A server that does not answer is told once; it ends nothing that runs."""
        found = PROGRESS.search(line)
        if found is None or not int(found[2]):
            return
        percent = min(100.0, 100.0 * int(found[1]) / int(found[2]))
        is_due = time.monotonic() - self._told >= PROGRESS_SECONDS or percent == 100.0
        if percent == self._percent or not is_due:
            return
        self._told, self._percent = time.monotonic(), percent
        try:
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, description="steps of training")  # type: ignore[assignment]
            else:
                update_progress_artifact(self._artifact, percent)
        except Exception as error:  # whatever it is: the training goes on
            if not self._is_lost:
                get_run_logger().warning(f"progress is not shown: {type(error).__name__}: {error}")
            self._is_lost = True
