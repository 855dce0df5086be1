"""Turn a fetched corpus into checked shards, in several processes; a killed run is resumed shard by shard."""

import importlib
import json
import multiprocessing
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import chain, count, islice, takewhile
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel
from rich.markup import escape
from rich.progress import track

from steermoe.atomic_io import Staging, code_digest, tree_digest, write_text
from steermoe.audio import io as waveform
from steermoe.data import filestate
from steermoe.data.filters import LEFT_OUT, LeftOut, Limits, skipped_reason, write_skipped
from steermoe.data.schema import ShardError, audio_fault, validate_shard
from steermoe.data.shards import SHARD_BYTES, note_ids, read_rows, shard_name, write_shard
from steermoe.distributed import begin_worker

SUMMARY = "summary.json"
MAX_SHOWN = 3  # names in a message
UNNAMED = ("unknown", "none")  # values of `speaker` that name nobody
_MD5 = 26  # where the checksum of the samples begins in a FLAC file


class PartError(RuntimeError):
    """A part of a corpus could not be made into shards."""


@dataclass(frozen=True)
class Job:
    """What a process needs to make the shards of one part."""

    corpus: str  # module of the reader
    settings: BaseModel
    source: Path
    part: Any
    files: Path
    scratch: Path
    limits: Limits
    shard_bytes: int

    def name(self, continued: int = 0) -> str:
        """Return the file name of a shard of the part."""
        return shard_name(self.part.split, self.part.number, continued)

    def finished(self) -> list["Finished"]:
        """Return the finished shards, in order."""
        names = takewhile(lambda name: (self.files / name).exists(), map(self.name, count()))
        return [Finished(name, **json.loads((self.scratch / f"{name}.json").read_text())) for name in names]


@dataclass(frozen=True)
class Finished:
    """A finished shard: its name, the rows left out of it, and the row that the next one begins with, if any."""

    name: str
    left_out: list[dict[str, Any]]
    next_row: int | None


def preprocess(
    corpus: Any,
    settings: BaseModel,
    source: Path,
    out: Path,
    limits: Limits | None = None,
    workers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Turn a fetched corpus into shards, summary.json and left_out.jsonl.

    A part becomes a shard, or several if its recordings need more room. Audio without sample_rate and seconds is any
    recording (a path, or the bytes of a file) and is converted, or rejected. A killed run is resumed by the next one.

    Args:
        corpus: a reader (see `steermoe.corpora.reader`).
        settings: its section of the configuration.
        source: the folder that its `fetch` filled.
        out: replaced as a whole at the end.
        limits: what is dropped, and how much may be rejected; left_out.jsonl lists both (see `LeftOut`).
        workers: parts made at a time; by default one a CPU core. The result does not depend on it.
        shard_bytes: bytes of audio and video that a shard may hold.

    Returns:
        {"splits": {split: {"shards", "rows", "seconds", "dropped", "rejected"}}}, or {"skipped": reason}.

    Raises:
        PartError: the reader failed, or its process died.
        ShardError: rows are not utterances, or two have the same id; a recording is larger than a shard.
        RejectedError: more is rejected than `limits` allow. The shards stay for the next run.
        ChangedError: files that the corpus uses in place have changed since it was fetched.
    """
    limits = limits or Limits()
    key = {
        "preprocess": corpus.__name__,
        "settings": settings.model_dump(mode="json"),
        "source": tree_digest(source),
        "limits": limits.key,
        "shard_bytes": shard_bytes,
        "code": code_digest("audio", "corpora", "data"),
    }
    with Staging(out, key) as staging:
        if (reason := skipped_reason(source)) is not None:
            write_skipped(staging.files, reason)
            staging.commit()
            print(f"SKIPPED {out.name}: {reason}", file=sys.stderr)
            return {"skipped": reason}
        filestate.check(source)
        jobs = [
            Job(corpus.__name__, settings, source, part, staging.files, staging.scratch, limits, shard_bytes)
            for part in corpus.parts(settings, source)
        ]
        todo = [job for job in jobs if not (found := job.finished()) or found[-1].next_row is not None]
        made = _in_processes(todo, workers or len(os.sched_getaffinity(0)))
        for _ in track(made, escape(f"preprocess {out.name}"), len(todo)):
            pass
        summary = _finish(staging.files, jobs, limits)
        filestate.check(source)  # no file was changed while it was read
        staging.commit()
    return summary


def _finish(folder: Path, jobs: Sequence[Job], limits: Limits) -> dict[str, Any]:
    """Check what was left out, write left_out.jsonl and summary.json, and return the summary."""
    left_out: list[LeftOut] = []
    splits: dict[str, dict[str, Any]] = {}
    seen: dict[str, Path] = {}
    for split, shard in [(job.part.split, shard) for job in jobs for shard in job.finished()]:
        left_out += [LeftOut(**item) for item in shard.left_out]
        frame = pl.read_parquet(folder / shard.name, columns=["source_id", "seconds"])
        note_ids(seen, frame["source_id"], folder / shard.name)
        of = splits.setdefault(split, {"shards": 0, "rows": 0, "seconds": 0.0})
        of["shards"] += 1
        of["rows"] += len(frame)
        of["seconds"] = round(of["seconds"] + frame["seconds"].sum(), 3)
    counts = Counter((item.split, item.kind) for item in left_out)
    for split, of in splits.items():
        of |= {kind: counts[split, kind] for kind in ("dropped", "rejected")}
    limits.check_rejected(left_out, {split: of["rows"] for split, of in splits.items()})
    lines = (json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in left_out)
    write_text(folder / LEFT_OUT, "".join(lines))
    write_text(folder / SUMMARY, json.dumps({"splits": splits}, indent=1) + "\n")
    return {"splits": splits}


def _in_processes(jobs: Sequence[Job], workers: int) -> Iterator[None]:
    """Run the jobs, `workers` at a time, and yield after each; on an error the other processes are ended."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_in_process, job) for job in jobs]
        try:
            for done in as_completed(futures):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            running = [
                future for future in futures if not future.cancelled()
            ]  # `wait` never counts those as done
            while wait(running, timeout=0.1).not_done:
                for process in multiprocessing.active_children():
                    process.terminate()
            raise


def _in_process(job: Job) -> None:
    """Run a job in a process of its own: a reader's engine may carry state over from part to part (espeak-ng does)."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=begin_worker) as process:
        try:
            process.submit(_run, job).result()
        except BrokenProcessPool as error:
            raise PartError(
                f"{job.corpus}: part {job.name()} failed: its process was killed, often for lack of memory (try fewer "
                "workers); repeat the command to resume"
            ) from error


def _run(job: Job) -> None:
    try:
        _make_shards(job)
    except ShardError:
        raise
    except FileNotFoundError as error:
        advice = "does not exist any more; bring it back, or run the download stage again, by force"
        raise PartError(f"{job.corpus}: part {job.name()} failed; {error.filename} {advice}") from error
    except Exception:  # its traceback is part of the message: the exception itself may not survive pickling
        advice = "repeat the command to resume"
        raise PartError(
            f"{job.corpus}: part {job.name()} failed; {advice}\n{traceback.format_exc()}"
        ) from None


def _make_shards(job: Job) -> None:
    """Write and check the shards of a part that are not finished."""
    finished = job.finished()
    first = number = (finished[-1].next_row or 0) if finished else 0
    left_out: list[dict[str, Any]] = []

    def usable() -> Iterator[dict[str, Any]]:
        nonlocal number
        # A reader's state may depend on its first rows: they are drawn again, but not decoded.
        rows = importlib.import_module(job.corpus).rows(job.settings, job.source, job.part)
        for number, row in enumerate(islice(rows, first, None), first):  # noqa: B007
            kind, reason = "rejected", row.get("fault")
            if not reason:
                try:
                    row = _with_flac(row)
                    kind, reason = "dropped", job.limits.exceeded(row)
                except waveform.AudioError as error:
                    reason = str(error)
            if reason:
                left_out.append(asdict(LeftOut(row["source_id"], row["split"], kind, reason)))
            else:
                yield row

    rows = usable()
    for continued in count(len(finished)):
        name = job.name(continued)
        rest = write_shard(rows, job.scratch / name, job.shard_bytes)
        validate_shard(job.scratch / name)
        note = {"left_out": left_out, "next_row": None if rest is None else number}
        write_text(job.scratch / f"{name}.json", json.dumps(note))
        (job.scratch / name).replace(job.files / name)  # from here on the shard counts as finished
        if rest is None:
            return
        left_out.clear()
        rows = chain([rest], rows)


def _with_flac(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with its audio as FLAC. Without sample_rate and seconds, the audio is any recording.

    Raises:
        AudioError: the recording cannot be used.
        ShardError: the recording cannot be read, or is not what sample_rate and seconds say.
    """
    if "sample_rate" in row or "seconds" in row:
        fault = audio_fault(row.get("audio"), row.get("sample_rate"), row.get("seconds"), decode=True)
        if fault is not None:
            raise ShardError(
                f"row {row.get('source_id')!r}, column audio: found {fault}, expected a mono FLAC file of the row's "
                "sample_rate and seconds; correct the corpus reader, or let it give the recording without both"
            )
        return row
    try:
        audio, seconds = waveform.as_flac(row["audio"])
    except OSError as error:
        raise ShardError(
            f"row {row['source_id']!r}: its recording {row['audio']} cannot be read ({error}); put it back, "
            "or correct the corpus, and run `make repro` (or `dvc repro`), which lists the corpus again"
        ) from error
    return row | {"audio": audio, "sample_rate": waveform.RATE, "seconds": seconds}


def overlap(folder: Path, train: Sequence[str], test: Sequence[str]) -> str:
    """Return a line on recordings and speakers that training and test splits share; "" where they share none.

    Recordings are the same if their samples are; rows with several questions about one count once.
    """
    columns, size = ("source_id", "speaker", "audio"), waveform.FLAC_HEADER - _MD5
    trained, tested = (
        read_rows(folder, splits, columns).with_columns(samples=pl.col("audio").bin.slice(_MD5, size))
        for splits in (train, test)
    )
    known = tested.filter(pl.col("samples") != bytes(size))  # else the file has no checksum
    shared = known.filter(pl.col("samples").is_in(trained["samples"].implode()))
    shared = shared.unique("samples", maintain_order=True)
    speakers = sorted(set(tested["speaker"]) & set(trained["speaker"]) - set(UNNAMED))
    found = [
        f"{len(names)} {kind} ({', '.join(names[:MAX_SHOWN])}{', ...' if len(names) > MAX_SHOWN else ''})"
        for kind, names in (("recordings", shared["source_id"].to_list()), ("speakers", speakers))
        if names
    ]
    if not found:
        return ""
    return (
        f"test splits {', '.join(test)} share with training splits {', '.join(train)}: {' and '.join(found)}"
    )
