"""What decides the result of a training: its key, under which an interrupted one is found again."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from steermoe.config import VariantConfig

FORMAT = 2  # of the checkpoints; a higher number makes older ones unread


def training_key(
    variant: VariantConfig,
    data: str,
    frozen: Mapping[str, str],
    adapters: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """Everything that decides the result but the code, as JSON.

    How many processes share the work, and how, is no part of it: the result is the same but for rounding, and
    a training that began in two processes goes on in one.

    Args:
        variant: the resolved configuration.
        data: digest of the shards (`digest`).
        frozen: hashes of the frozen weights (`SteerMoE.frozen_hashes`).
        adapters: hashes of the adapters that the training reads (`adapters_of`).
    """
    return {
        "checkpoint": FORMAT,
        "variant": json.loads(variant.to_json()),
        "data": data,
        "frozen": dict(frozen),
        **{name: dict(files) for name, files in (adapters or {}).items()},
    }


def fingerprint(key: Mapping[str, Any]) -> str:
    """A key as 32 hexadecimal digits; the name of the training's work folder too (`Staging`)."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def digest(files: Iterable[Path]) -> str:
    """SHA-256 over contents, names and folders' names of files, whatever their order and place."""
    names = hashlib.sha256()
    for path in sorted(files, key=lambda p: p.parts[-2:]):
        status = path.stat()
        content = _content(path, status.st_size, status.st_mtime_ns)
        names.update(f"{'/'.join(path.parts[-2:])} {content}\n".encode())
    return names.hexdigest()


@cache
def _content(path: Path, size: int, modified: int) -> str:
    """SHA-256 of a file, read once as long as it stays the same: a split's digest is asked for more than once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
