"""Parts of a corpus, each made by a process of its own.

A process a part, not a pool's: a reader's engine may carry state from part to part (espeak-ng does), and a
pool waits for ever on a worker that the kernel has killed. Whatever is imported here, each of them imports.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from steermoe.data.rows import frame_of, write_frame


class PartError(RuntimeError):
    """A part of a corpus could not be made."""


@dataclass(frozen=True)
class Job:
    """What a process is told: make `part` and write its rows to `path`, unchecked.

    Longer utterances than `max_seconds`, if that is given, are left out.
    """

    corpus: str  # module of the reader
    settings: BaseModel
    source: Path
    part: Any
    path: Path
    max_seconds: float | None


def in_processes(jobs: Mapping[str, Job], workers: int) -> Iterator[tuple[str, int]]:
    """Run the jobs, `workers` at a time.

    Yields:
        name of a job that is done, and how many utterances it left out.

    Raises:
        PartError: a job failed, or its process died. The others are ended.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(jobs)[::-1]
    running: dict[Connection, tuple[str, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                name = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(sender, jobs[name], os.getpid()), daemon=True)
                process.start()
                sender.close()  # so that the child's death ends the pipe
                running[receiver] = (name, process)
            for receiver in wait(list(running)):
                assert isinstance(receiver, Connection)
                name, process = running.pop(receiver)
                yield name, _answer(receiver, name, jobs[name], process)
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


def _answer(receiver: Connection, name: str, job: Job, process: BaseProcess) -> int:
    try:
        dropped, failure = receiver.recv()
    except EOFError:
        dropped, failure = 0, None
    receiver.close()
    process.join()
    if failure is None and process.exitcode != 0:
        failure = f"its process died (exit code {process.exitcode}; -9 is often a lack of memory)"
    if failure is not None:
        raise PartError(f"{job.corpus}: part {name} failed; repeat the command to go on from here\n{failure}")
    return dropped


def _work(sender: Connection, job: Job, parent: int) -> None:
    """What runs in a part's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it, and ends its children
    try:
        answer = (_make(job, parent), None)
    except Exception:  # the parent raises it, whatever it is
        answer = (0, traceback.format_exc())
    sender.send(answer)
    sender.close()


def _make(job: Job, parent: int) -> int:
    corpus = importlib.import_module(job.corpus)
    kept, dropped = [], 0
    for row in corpus.rows(job.settings, job.source, job.part):
        _stop_without(parent)
        if job.max_seconds is not None and row["seconds"] > job.max_seconds:
            dropped += 1
        else:
            kept.append(row)
    frame = frame_of(kept)
    _stop_without(parent)
    write_frame(frame, job.path)
    return dropped


def _stop_without(parent: int) -> None:
    """End this process if its parent was killed: what that began is another process' now."""
    if os.getppid() != parent:
        sys.exit(1)
