"""What decides the result of a training: its key, under which an interrupted one is found again."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from steermoe.config import ArmConfig

FORMAT = 2  # of the checkpoints; a higher number makes older ones unread


def training_key(arm: ArmConfig, data: str, frozen: Mapping[str, str]) -> dict[str, Any]:
    """Everything that decides the result but the code, as JSON.

    How many processes share the work, and how, is no part of it: the result is the same but for rounding, and
    a training that began in two processes goes on in one.

    Args:
        arm: the resolved configuration.
        data: digest of the shards (`digest`).
        frozen: hashes of the frozen weights (`SteerMoE.frozen_hashes`).
    """
    return {
        "checkpoint": FORMAT,
        "arm": json.loads(arm.to_json()),
        "data": data,
        "frozen": dict(frozen),
    }


def fingerprint(key: Mapping[str, Any]) -> str:
    """A key as 32 hexadecimal digits; the name of the training's work folder too (`Staging`)."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def digest(files: Iterable[Path]) -> str:
    """SHA-256 over contents, names and folders' names of files, whatever their order and place."""
    names = hashlib.sha256()
    for path in sorted(files, key=lambda p: p.parts[-2:]):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        names.update(f"{'/'.join(path.parts[-2:])} {content}\n".encode())
    return names.hexdigest()
