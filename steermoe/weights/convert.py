"""Convert models of other formats once, into the cache: CTranslate2 and GGUF to the format of Hugging Face.

The cache is `~/.cache/steermoe` (`$XDG_CACHE_HOME/steermoe`; STEERMOE_CACHE names another folder). A folder in it is
named by the SHA-256 of what it was made from, and appears whole or not at all; what an interrupted process has
finished is used again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from steermoe.atomic_io import Staging
from steermoe.weights import ctranslate2, gguf_file

VERSION = 1  # of the conversions; another one converts anew
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "MODEL_CARD")
BESIDE = ("config.json", "tokenizer.json")  # that CTranslate2's model.bin is converted with
Make = Callable[[Path, Path], None]
"""(scratch, files) -> None: writes `files`; what it puts into `scratch` is found there by the next try."""


def cache() -> Path:
    """Return the folder of the cache, which need not exist."""
    own = os.environ.get("STEERMOE_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steermoe"


def cached(name: str, key: dict[str, Any]) -> Path:
    """Return the folder in the cache for what is made from `key`; it exists if it is finished."""
    text = json.dumps(key | {"version": VERSION}, sort_keys=True)
    return cache() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def built(name: str, key: dict[str, Any], make: Make) -> Path:
    """Return the folder of `cached`, made if it does not exist; of two processes the second waits for the first."""
    out = cached(name, key)
    if out.is_dir():
        return out
    with Staging(out, {"out": str(out)}, cache()) as staging:
        if out.is_dir():  # by the process that this one has waited for
            staging.retire()
            return out
        make(staging.scratch, staging.files)
        staging.commit()
    return out


def format_of(path: Path) -> str | None:
    """Return the row of CONVERSIONS for a folder or file; None if it is used as it is."""
    if path.is_dir():
        return "ctranslate2" if ctranslate2.is_ctranslate2(path) else None
    return "gguf" if gguf_file.is_gguf(path) else None


def converted(path: Path) -> Path:
    """Return the folder in Hugging Face format of a folder or file, converted in the cache where that is needed.

    Raises:
        ValueError: it is damaged, or cannot be converted.
    """
    kind = format_of(path)
    if kind is None:
        return path
    name = (path.stem if path.is_file() else path.resolve().name).lower() or kind
    return built(name, {"kind": kind, "files": identity(path)}, lambda _, files: convert(kind, path, files))


def identity(path: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that a conversion of a folder or file reads, by name."""
    files = [path] if path.is_file() else [path / ctranslate2.FILE, *(path / name for name in BESIDE)]
    return {file.name: sha256(file) for file in files if file.is_file()}


def convert(kind: str, source: Path, out: Path) -> None:
    """Write a model in Hugging Face format into the folder `out`, with the licences that lie beside the source."""
    for leftover in out.iterdir() if out.is_dir() else ():  # of an interrupted conversion
        leftover.unlink()
    CONVERSIONS[kind](source, out)
    folder = source.parent if source.is_file() else source
    for file in sorted({file for pattern in LICENCES for file in folder.glob(pattern)}):
        shutil.copyfile(file, out / file.name)
    for file in out.glob("*.safetensors"):  # safetensors makes files that others cannot read
        file.chmod(0o644)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file; of one that has not changed since the last call, without reading it."""
    status = path.stat()
    return _sha256(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


CONVERSIONS: dict[str, Callable[[Path, Path], None]] = {
    "ctranslate2": ctranslate2.convert,
    "gguf": gguf_file.convert,
}
