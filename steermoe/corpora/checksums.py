"""Checksums of files: as published, and as noted when a file was downloaded (a lock)."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from steermoe.atomic_io import project_root, write_text
from steermoe.corpora.archives import ArchiveError

CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class Digest:
    """What a file is known by."""

    bytes: int
    sha256: str


class ChecksumError(ArchiveError):
    """A file is not the published one, or not the one that was downloaded before."""


def verify(path: Path, expected: str | None) -> Digest:
    """Read a file once, and compare it.

    Args:
        expected: `md5:`, `sha256:` or `git:` (a git blob's SHA-1) and hexadecimal digits; None compares
            nothing.

    Raises:
        ChecksumError: it differs; the file is left where it is.
    """
    size = path.stat().st_size
    kind, _, digits = (expected or "sha256:").partition(":")
    sha256 = hashlib.sha256()
    other = hashlib.new("sha1" if kind == "git" else kind, usedforsecurity=False)
    if kind == "git":
        other.update(f"blob {size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            other.update(chunk)
    if expected is not None and other.hexdigest() != digits:
        raise ChecksumError(
            f"{path}: wrong checksum, found {kind}:{other.hexdigest()}, expected {expected}; the file is "
            "damaged, or another one: get it anew, or name another mirror"
        )
    return Digest(size, sha256.hexdigest())


def read_lock(lock: str) -> dict[str, Digest]:
    """The files of a lock (a path from the project root, if relative), by name.

    Raises:
        ChecksumError: there is no such lock, or it is none.
    """
    path = project_root() / lock
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {name: Digest(int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ChecksumError(
            f"lock {lock!r} ({path}): not a lock file ({type(error).__name__}: {error}); expected the "
            "<corpus>.lock that a download left, or null"
        ) from error


def compare(lock: Mapping[str, Digest], name: str, path: Path, found: Digest) -> None:
    """Compare a file with its entry in a lock.

    Raises:
        ChecksumError: it differs, or has no entry.
    """
    if name not in lock:
        raise ChecksumError(f"{path}: {name!r} is not in the lock, which has: {', '.join(lock) or 'nothing'}")
    if found != lock[name]:
        raise ChecksumError(
            f"{path}: not the file of the lock: found sha256:{found.sha256} ({found.bytes} bytes), expected "
            f"sha256:{lock[name].sha256} ({lock[name].bytes} bytes); get it anew, or, if a new release is "
            "meant, take a new lock"
        )


def write_lock(path: Path, corpus: str, files: Mapping[str, Digest]) -> None:
    """Note what was downloaded."""
    entries = {name: {"bytes": of.bytes, "sha256": of.sha256} for name, of in sorted(files.items())}
    write_text(path, json.dumps({"corpus": corpus, "files": entries}, indent=1) + "\n")
