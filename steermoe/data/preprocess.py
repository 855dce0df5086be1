"""A corpus to shards: each by a process of its own, checked, and resumable shard by shard."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import BaseModel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from steermoe.atomic_io import Staging, code_digest, tree_digest, write_text
from steermoe.data import filestate
from steermoe.data import limits as left
from steermoe.data.limits import LeftOut, Limits
from steermoe.data.parts import Job, Made, in_processes
from steermoe.data.rows import SHARD_BYTES
from steermoe.data.shards import note_ids
from steermoe.data.skipped import skipped_reason, write_skipped

if TYPE_CHECKING:
    from steermoe.corpora import Reader

SUMMARY = "summary.json"


def preprocess(
    corpus: "Reader",
    settings: BaseModel,
    source: Path,
    out: Path,
    limits: Limits | None = None,
    workers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Turn a fetched corpus into shards, a summary.json, and left_out.jsonl.

    A part is a shard; where its recordings need more room than one may take, the part goes on in others.
    Texts stay as the reader gives them. A row whose reader gives neither sample_rate nor seconds has any
    recording as its audio (a path, or the bytes of a file): it is decoded, mixed down and resampled, or, where
    that cannot be, rejected. A killed run is finished by the next one with the same arguments, code and
    source: finished shards stay.

    Args:
        corpus: a reader (see `steermoe.corpora`).
        settings: its section of the configuration.
        source: what its `fetch` made.
        out: gets the shards, `<split>-<part>.parquet` and what goes on from it, `<split>-<part>_<number>.parquet`;
            replaced as a whole at the end.
        limits: what is dropped, and how much may be rejected; by default nothing. Both are in left_out.jsonl,
            a line an utterance: source_id, split, kind (dropped or rejected), reason.
        workers: shards made at a time; by default one a CPU core. The result is the same for any number.
        shard_bytes: most audio and video a shard.

    Returns:
        the summary: {"splits": {split: {"shards", "rows", "seconds", "dropped", "rejected"}}} of the splits
        that have parts, or {"skipped": reason} of a corpus that was skipped, whose `out` holds nothing but that.

    Raises:
        PartError: a part failed or its process died; the message holds its traceback.
        ShardError: a part's rows are not utterances, or two have the same id; a recording is larger than a shard.
        RejectedError: more is rejected than `limits` allow. What was made stays for the next try.
        ChangedError: files that the corpus uses as they lie have changed since it was fetched.
        StagingBusyError: as of `Staging`; it waits for another process that makes the same shards.
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
        reason = skipped_reason(source)
        if reason is not None:
            write_skipped(staging.files, reason)
            staging.commit()
            print(f"SKIPPED {out.name}: {reason}", file=sys.stderr)
            return {"skipped": reason}
        filestate.check(source)
        parts = corpus.parts(settings, source)
        jobs = [
            Job(corpus.__name__, settings, source, part, staging.scratch, limits, shard_bytes)
            for part in parts
        ]
        names = [job.name for job in jobs]
        if len(set(names)) < len(names):
            raise ValueError(
                f"{corpus.__name__}: parts must differ in split and number, found {sorted(names)}"
            )
        _make_shards(staging, jobs, workers or len(os.sched_getaffinity(0)))
        made = [shard for job in jobs for shard in _finished(staging, job)[0]]
        left_out = [item for _, found in made for item in found.left_out]
        summary = _summary(staging, {job.name: job.part.split for job, _ in made}, left_out)
        limits.check_rejected(left_out, {s: found["rows"] for s, found in summary["splits"].items()})
        write_text(staging.part(left.LEFT_OUT), left.to_lines(left_out))
        write_text(staging.part(SUMMARY), json.dumps(summary, indent=1) + "\n")
        filestate.check(source)  # nothing was changed while it was read
        staging.commit()
    return summary


def _finished(staging: Staging, job: Job | None) -> tuple[list[tuple[Job, Made]], Job | None]:
    """The finished shards of a part, whose first one is `job`, and the job that is left; None where none is."""
    finished: list[tuple[Job, Made]] = []
    while job is not None and staging.part(job.name).exists():
        noted = json.loads(_note(staging, job).read_text(encoding="utf-8"))
        made = Made([LeftOut(**item) for item in noted["left_out"]], noted["first_left"])
        finished.append((job, made))
        job = job.after(made)
    return finished, job


def _make_shards(staging: Staging, jobs: Sequence[Job], workers: int) -> None:
    """Make what is not finished of the parts, whose first shards are `jobs`."""
    found = [_finished(staging, job) for job in jobs]
    done = sum(len(finished) for finished, _ in found)
    left_to_do = [rest for _, rest in found if rest is not None]
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        total = done + len(left_to_do)
        bar = progress.add_task(f"preprocess {staging.out.name}", total=total, completed=done)
        for job, made in in_processes(left_to_do, workers):
            write_text(_note(staging, job), json.dumps(asdict(made)))
            # A shard counts as finished once it is among the files.
            job.path.replace(staging.part(job.name))
            total += job.after(made) is not None
            progress.update(bar, advance=1, total=total)


def _summary(staging: Staging, shards: Mapping[str, str], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """Counts by split, from the finished shards; `shards` has the split of each."""
    gone = left.counts(left_out)
    counts: dict[str, dict[str, Any]] = {
        split: {"shards": 0, "rows": 0, "seconds": 0.0}
        | {kind: gone[split, kind] for kind in ("dropped", "rejected")}
        for split in dict.fromkeys(shards.values())
    }
    seen: dict[str, Path] = {}
    for name, split in shards.items():
        frame = pl.read_parquet(staging.part(name), columns=["source_id", "seconds"])
        note_ids(seen, frame["source_id"], staging.part(name))
        of = counts[split]
        of["shards"] += 1
        of["rows"] += len(frame)
        of["seconds"] = round(of["seconds"] + frame["seconds"].sum(), 3)
    return {"splits": counts}


def _note(staging: Staging, job: Job) -> Path:
    """What came of a job, written before its shard counts as finished."""
    return staging.scratch / f"{job.name}.json"
