"""Parts of a corpus, each shard of them made by a process of its own.

A process a shard, not a pool's: a reader's engine may carry state from part to part (espeak-ng does), and a
pool waits for ever on a worker that the kernel has killed. Whatever is imported here, each of them imports.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from steermoe.audio import io as waveform
from steermoe.data.limits import LeftOut, Limits
from steermoe.data.rows import ShardError, ShardWriter
from steermoe.data.schemas import audio_fault, validate_shard
from steermoe.data.shards import shard_name

REPEAT = "repeat the command to go on from here\n"


class PartError(RuntimeError):
    """A part of a corpus could not be made."""


@dataclass(frozen=True)
class Job:
    """What a process is told: write the rows of `part`, from row `first` on, to `path`, a checked shard.

    `further` of its shards are made already. The shard holds `shard_bytes` of audio and video at most.
    """

    corpus: str  # module of the reader
    settings: BaseModel
    source: Path
    part: Any
    scratch: Path
    limits: Limits
    shard_bytes: int
    further: int = 0
    first: int = 0

    @property
    def name(self) -> str:
        """The file name of the shard."""
        return shard_name(self.part.split, self.part.number, self.further)

    @property
    def path(self) -> Path:
        """Where the shard is made."""
        return self.scratch / self.name

    def after(self, made: "Made") -> "Job | None":
        """The job that goes on behind what was made; None where the part is at its end."""
        if made.first_left is None:
            return None
        return replace(self, further=self.further + 1, first=made.first_left)


@dataclass(frozen=True)
class Made:
    """What came of a job.

    Attributes:
        left_out: of the rows that it looked at.
        first_left: the first row of the part for which its shard had no room; None where it took all.
    """

    left_out: list[LeftOut]
    first_left: int | None


def in_processes(jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, Made]]:
    """Run the jobs, and those that go on from them, `workers` at a time.

    Yields:
        a job that is done, and what came of it.

    Raises:
        PartError: a job failed, or its process died. The others are ended.
        ShardError: the rows of a job are not utterances.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(jobs)[::-1]
    running: dict[Connection, tuple[Job, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(sender, job, os.getpid()), daemon=True)
                process.start()
                sender.close()  # so that the child's death ends the pipe
                running[receiver] = (job, process)
            for receiver in wait(list(running)):
                assert isinstance(receiver, Connection)
                job, process = running.pop(receiver)
                made = _answer(receiver, job, process)
                yield job, made
                if (rest := job.after(made)) is not None:
                    waiting.append(rest)
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


def _answer(receiver: Connection, job: Job, process: BaseProcess) -> Made:
    made: Made | None = None
    failure = fault = None
    with suppress(EOFError):  # it died, and its exit code tells how
        made, failure, fault = receiver.recv()
    receiver.close()
    process.join()
    if fault is not None:
        raise ShardError(fault)
    if failure is None and (made is None or process.exitcode != 0):
        failure = f"{REPEAT}its process died (exit code {process.exitcode}; -9 is often a lack of memory)"
    if made is None or failure is not None:
        raise PartError(f"{job.corpus}: part {job.name} failed; {failure}")
    return made


def _work(sender: Connection, job: Job, parent: int) -> None:
    """What runs in a shard's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it, and ends its children
    try:
        answer = (_make(job, parent), None, None)
    except ShardError as error:
        answer = (None, None, str(error))
    except FileNotFoundError as error:
        advice = "is not there any more; bring it back, or run the download stage anew, by force"
        answer = (None, f"{error.filename} {advice}", None)
    except Exception:  # the parent raises it, whatever it is
        answer = (None, REPEAT + traceback.format_exc(), None)
    sender.send(answer)
    sender.close()


def _make(job: Job, parent: int) -> Made:
    corpus = importlib.import_module(job.corpus)
    left_out: list[LeftOut] = []
    first_left = None
    # From the first row, for a reader's state may depend on it; what is in earlier shards is not decoded again.
    rows = islice(corpus.rows(job.settings, job.source, job.part), job.first, None)
    with ShardWriter(job.path, job.shard_bytes) as shard:
        for number, row in enumerate(rows, job.first):
            _stop_without(parent)
            if fault := row.get("fault"):
                left_out.append(LeftOut(row["source_id"], row["split"], "rejected", fault))
                continue
            try:
                row = _recorded(row)
            except waveform.AudioError as error:
                left_out.append(LeftOut(row["source_id"], row["split"], "rejected", str(error)))
                continue
            except OSError as error:
                raise ShardError(
                    f"row {row['source_id']!r}: its recording {row['audio']} cannot be read ({error}); put it back, "
                    "or correct the corpus, and run `make repro` (or `dvc repro`), which lists the corpus again"
                ) from error
            if reason := job.limits.exceeded(row):
                left_out.append(LeftOut(row["source_id"], row["split"], "dropped", reason))
            elif shard.has_room(row):
                shard.add(row)
            else:
                first_left = number
                break
        _stop_without(parent)
    validate_shard(job.path)
    return Made(left_out, first_left)


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
