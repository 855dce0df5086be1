"""The mark of a corpus that could not be had and is not required: a folder with nothing but SKIPPED.json."""

import json
from pathlib import Path

from steermoe.atomic_io import write_text

SKIPPED = "SKIPPED.json"


def write_skipped(folder: Path, reason: str) -> None:
    """Mark `folder` as skipped."""
    write_text(folder / SKIPPED, json.dumps({"skipped": reason}, indent=1) + "\n")


def skipped_reason(folder: Path) -> str | None:
    """Why the corpus in `folder` (raw or as shards) was skipped; None where it was not."""
    path = folder / SKIPPED
    return json.loads(path.read_text(encoding="utf-8"))["skipped"] if path.exists() else None
