"""A corpus to shards: every part by a process of its own, checked, and resumable part by part."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
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

from steermoe.data import limits as left
from steermoe.data.limits import LeftOut, Limits
from steermoe.data.parts import Job, in_processes
from steermoe.data.shards import note_ids, shard_name
from steermoe.data.skipped import skipped_reason, write_skipped
from steermoe.data.staging import Staging, code_digest, tree_digest, write_text

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
) -> dict[str, Any]:
    """Turn a fetched corpus into shards, one a part, a summary.json, and left_out.jsonl.

    Texts stay as the reader gives them. A row whose reader gives neither sample_rate nor seconds has any
    recording as its audio (a path, or the bytes of a file): it is decoded, mixed down and resampled, or, where
    that cannot be, rejected. A killed run is finished by the next one with the same arguments, code and
    source: finished parts stay.

    Args:
        corpus: a reader (see `steermoe.corpora`).
        settings: its section of the configuration.
        source: what its `fetch` made.
        out: gets the shards, `<split>-<number>.parquet`; replaced as a whole at the end.
        limits: what is dropped, and how much may be rejected; by default nothing. Both are in left_out.jsonl,
            a line an utterance: source_id, split, kind (dropped or rejected), reason.
        workers: parts made at a time; by default one a CPU core. The result is the same for any number.

    Returns:
        the summary: {"splits": {split: {"shards", "rows", "seconds", "dropped", "rejected"}}} of the splits
        that have parts, or {"skipped": reason} of a corpus that was skipped, whose `out` holds nothing but that.

    Raises:
        PartError: a part failed or its process died; the message holds its traceback.
        ShardError: a part's rows are not utterances, or two have the same id.
        RejectedError: more is rejected than `limits` allow. What was made stays for the next try.
        StagingBusyError: another process makes the same shards.
    """
    limits = limits or Limits()
    key = {
        "preprocess": corpus.__name__,
        "settings": settings.model_dump(mode="json"),
        "source": tree_digest(source),
        "limits": limits.key,
        "code": code_digest("audio", "corpora", "data"),
    }
    with Staging(out, key) as staging:
        reason = skipped_reason(source)
        if reason is not None:
            write_skipped(staging.files, reason)
            staging.commit()
            print(f"SKIPPED {out.name}: {reason}", file=sys.stderr)
            return {"skipped": reason}
        parts = corpus.parts(settings, source)
        names = [shard_name(part.split, part.number) for part in parts]
        if len(set(names)) < len(names):
            raise ValueError(
                f"{corpus.__name__}: parts must differ in split and number, found {sorted(names)}"
            )
        jobs = {
            name: Job(corpus.__name__, settings, source, part, staging.scratch / name, limits)
            for name, part in zip(names, parts, strict=True)
            if not staging.part(name).exists()
        }
        _make_parts(staging, jobs, len(names), workers or len(os.sched_getaffinity(0)))
        left_out = [item for name in names for item in left.from_lines(_left_out(staging, name).read_text())]
        of_split = {name: part.split for name, part in zip(names, parts, strict=True)}
        summary = _summary(staging, of_split, left_out)
        limits.check_rejected(left_out, {s: found["rows"] for s, found in summary["splits"].items()})
        write_text(staging.part(left.LEFT_OUT), left.to_lines(left_out))
        write_text(staging.part(SUMMARY), json.dumps(summary, indent=1) + "\n")
        staging.commit()
    return summary


def _make_parts(staging: Staging, jobs: Mapping[str, Job], total: int, workers: int) -> None:
    columns = (
        TextColumn(f"preprocess {staging.out.name}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=total, completed=total - len(jobs))
        for name, left_out in in_processes(jobs, workers):
            write_text(_left_out(staging, name), left.to_lines(left_out))
            jobs[name].path.replace(
                staging.part(name)
            )  # a part counts as finished once it is among the files
            progress.advance(bar)


def _summary(staging: Staging, parts: Mapping[str, str], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """Counts by split, from the finished shards; `parts` is the split of every shard."""
    gone = left.counts(left_out)
    counts: dict[str, dict[str, Any]] = {
        split: {"shards": 0, "rows": 0, "seconds": 0.0}
        | {kind: gone[split, kind] for kind in ("dropped", "rejected")}
        for split in dict.fromkeys(parts.values())
    }
    seen: dict[str, Path] = {}
    for name, split in parts.items():
        frame = pl.read_parquet(staging.part(name), columns=["source_id", "seconds"])
        note_ids(seen, frame["source_id"], staging.part(name))
        of = counts[split]
        of["shards"] += 1
        of["rows"] += len(frame)
        of["seconds"] = round(of["seconds"] + frame["seconds"].sum(), 3)
    return {"splits": counts}


def _left_out(staging: Staging, name: str) -> Path:
    return staging.scratch / f"{name}.left_out.jsonl"
