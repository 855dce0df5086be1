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
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from steermoe.audio import waveform
from steermoe.data.limits import LeftOut, Limits
from steermoe.data.rows import ShardError, ShardWriter
from steermoe.data.schemas import audio_fault, validate_shard


class PartError(RuntimeError):
    """A part of a corpus could not be made."""


@dataclass(frozen=True)
class Job:
    """What a process is told: make `part` and write its rows to `path`, a checked shard."""

    corpus: str  # module of the reader
    settings: BaseModel
    source: Path
    part: Any
    path: Path
    limits: Limits


def in_processes(jobs: Mapping[str, Job], workers: int) -> Iterator[tuple[str, list[LeftOut]]]:
    """Run the jobs, `workers` at a time.

    Yields:
        name of a job that is done, and the utterances that it left out.

    Raises:
        PartError: a job failed, or its process died. The others are ended.
        ShardError: the rows of a job are not utterances.
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


def _answer(receiver: Connection, name: str, job: Job, process: BaseProcess) -> list[LeftOut]:
    left_out: list[LeftOut] = []
    failure = fault = None
    with suppress(EOFError):  # it died, and its exit code tells how
        left_out, failure, fault = receiver.recv()
    receiver.close()
    process.join()
    if fault is not None:
        raise ShardError(fault)
    if failure is None and process.exitcode != 0:
        failure = f"its process died (exit code {process.exitcode}; -9 is often a lack of memory)"
    if failure is not None:
        raise PartError(f"{job.corpus}: part {name} failed; repeat the command to go on from here\n{failure}")
    return left_out


def _work(sender: Connection, job: Job, parent: int) -> None:
    """What runs in a part's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it, and ends its children
    try:
        answer = (_make(job, parent), None, None)
    except ShardError as error:
        answer = ([], None, str(error))
    except Exception:  # the parent raises it, whatever it is
        answer = ([], traceback.format_exc(), None)
    sender.send(answer)
    sender.close()


def _make(job: Job, parent: int) -> list[LeftOut]:
    corpus = importlib.import_module(job.corpus)
    left_out: list[LeftOut] = []
    with ShardWriter(job.path) as shard:
        for row in corpus.rows(job.settings, job.source, job.part):
            _stop_without(parent)
            try:
                row = _recorded(row)
            except waveform.AudioError as error:
                left_out.append(LeftOut(row["source_id"], row["split"], "rejected", str(error)))
                continue
            if reason := job.limits.exceeded(row):
                left_out.append(LeftOut(row["source_id"], row["split"], "dropped", reason))
            else:
                shard.add(row)
        _stop_without(parent)
    validate_shard(job.path)
    return left_out


def _recorded(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its audio as shards hold it. Where it says no rate, its audio is any recording, not read yet.

    Raises:
        AudioError: the recording cannot be used.
        ShardError: audio that should be as shards hold it is not.
    """
    if "sample_rate" not in row and "seconds" not in row:
        audio, seconds = waveform.as_flac(row["audio"])
        return row | {"audio": audio, "sample_rate": waveform.RATE, "seconds": seconds}
    fault = audio_fault(row.get("audio"), row.get("sample_rate"), row.get("seconds"), decode=True)
    if fault is not None:
        raise ShardError(
            f"row {row.get('source_id')!r}, column audio: found {fault}, expected a mono FLAC file of the row's "
            "sample_rate and seconds; correct the corpus reader, or let it give the recording without both"
        )
    return row


def _stop_without(parent: int) -> None:
    """End this process if its parent was killed: what that began is another process' now."""
    if os.getppid() != parent:
        sys.exit(1)
