"""Run a command in a slot, and leave nothing of it behind: `python -m flows.supervise [options] -- command ...`

Ends the command with everything that it started when it is told to (SIGTERM, SIGINT), when the time is over, or when
nobody is left to tell: its standard input is a pipe from whoever started it, which the kernel closes when that one
dies, by SIGKILL too. A process gets SIGTERM first and `--grace` seconds for its last checkpoint, then SIGKILL.
The slot is free when all are gone.
"""

import argparse
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from flows import slots

TIME_OVER, TOLD = 124, 143  # exit codes; else the command's own
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
POLL_SECONDS = 0.1


class Supervision:
    """One command and everything that it started.

    Orphans of the command become children of this process (Linux): a daemon or a rank whose launcher died does not
    escape.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.is_told = False
        self._command: subprocess.Popen[bytes] | None = None
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.tell())
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self) -> None:
        """End the command soon."""
        self.is_told = True

    def run(self, command: list[str], folder: Path, environment: dict[str, str], limit: float | None) -> int:
        """The command's exit code, TIME_OVER after `limit` seconds, or TOLD."""
        deadline = float("inf") if limit is None else time.monotonic() + limit
        self._command = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        relay = threading.Thread(target=self._relay, daemon=True)
        relay.start()
        code = None
        while code is None:
            code = self._command.poll()
            if code is None and self.is_told:
                code = TOLD
            elif code is None and time.monotonic() > deadline:
                code = TIME_OVER
            elif code is None:
                time.sleep(POLL_SECONDS)
        self._end_all()
        relay.join(timeout=5)
        return code if code >= 0 else 128 - code

    def _end_all(self) -> None:
        """Until nothing is left; what a signal reached may still start something."""
        for number, patience in ((signal.SIGTERM, self.grace), (signal.SIGKILL, 30.0)):
            deadline, told = time.monotonic() + patience, set()
            while living := self._living():
                if time.monotonic() > deadline:
                    break
                for process in living:
                    if process.pid not in told:
                        told.add(process.pid)
                        with suppress(psutil.NoSuchProcess):
                            process.send_signal(number)
                time.sleep(POLL_SECONDS)

    def _living(self) -> list[psutil.Process]:
        assert self._command is not None
        self._command.poll()
        living = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    living.append(process)
                elif process.pid != self._command.pid and process.ppid() == os.getpid():
                    os.waitpid(process.pid, os.WNOHANG)  # an orphan that ended here
        return living

    def _listen(self) -> None:
        while os.read(0, 1024):
            pass
        self.tell()

    def _relay(self) -> None:
        """Pass the output on. When nobody reads it any more, take it all the same: the trainer shall not die of it."""
        assert self._command is not None and self._command.stdout is not None
        for line in self._command.stdout:
            with suppress(OSError):
                os.write(1, line)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.supervise", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the project; slots lie in its .runs/")
    parser.add_argument("--folder", type=Path, required=True, help="where the command runs")
    parser.add_argument("--slots", type=int, default=1, help="how many slots it takes; 0: none")
    parser.add_argument("--limit", type=float, default=None, help="seconds, from the moment it has its slots")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--disposable", action="store_true", help="delete the folder when told to end")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    with at_work(given.folder):
        code = _run(given)
        if code == TOLD and given.disposable:
            shutil.rmtree(given.folder, ignore_errors=True)
    return code


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Hold a folder while something works in it (flock); `is_idle` tells whether something does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def is_idle(folder: Path) -> bool:
    """No supervised command works in a folder, or there is no such folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _run(given: argparse.Namespace) -> int:
    supervision = Supervision(given.grace)
    if given.slots == 0:
        return supervision.run(given.command, given.folder, {}, given.limit)
    try:
        slots.check(given.slots)
    except ValueError as error:
        print(f"supervise: {error}", file=sys.stderr)
        return 2
    with slots.taken(given.root / ".runs", given.slots, lambda: supervision.is_told) as held:
        if not held:
            return TOLD
        share = slots.environment(held)
        words = " ".join(f"{name}={value}" for name, value in share.items())
        print(f"slot {', '.join(map(str, held))} of {slots.number()} {words}".rstrip(), flush=True)
        return supervision.run(given.command, given.folder, share, given.limit)


if __name__ == "__main__":
    sys.exit(main())
