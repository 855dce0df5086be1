"""Where the files of the frozen models are, and what tells these models from others.

A model is a folder, or an id of the hub with a commit. Nothing here reads weights.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from steermoe.config import Encoder, Llm, Locked, VideoEncoder, of_the_hub

Base = TypeVar("Base", Encoder, Llm, VideoEncoder)
TOKENIZER = "tokenizer.json"
KINDS = (".safetensors", ".json", ".jsonl", ".txt", ".model", ".jinja")  # files that a model consists of
FETCHED = ("model*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
LEFT = ("*.fp32*", "*.fp16*")  # the same weights once more, in another precision
CHUNK = 2**24
HASHED_AT_ONCE = 4  # files: hashing leaves Python's lock


class LockError(ValueError):
    """A model's files are not those that the lock beside the profile has."""


def located(section: Base, setting: str, local_files_only: bool = False) -> Base:
    """The section with the folder that has the model's files as its path, downloaded where that is needed.

    Args:
        section: `path` is a folder, or an id of the hub; `revision` its commit, null for the latest.
        setting: name of the configuration's section, for errors.
        local_files_only: do not download anything.

    Raises:
        ValueError: there is neither such a folder nor such a model, or a folder has a revision.
    """
    if Path(section.path).is_dir():
        if section.revision is not None:
            raise ValueError(
                f"{setting}.revision: found {section.revision!r}, but {section.path!r} is a folder here; legal: null"
            )
        return section
    found = f"{setting}.path: found {section.path!r}, which is neither a folder in Hugging Face format with "
    if not of_the_hub(section.path):
        raise ValueError(f"{found}safetensors (seen from the working directory) nor an id of the hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = snapshot_download(
            section.path,
            revision=section.revision,
            local_files_only=local_files_only,
            allow_patterns=[*FETCHED],
            ignore_patterns=[*LEFT],
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"{found}safetensors (seen from the working directory) nor a model on the hub: {error}"
        ) from error
    return section.model_copy(update={"path": folder, "revision": None})


def identity(section: Encoder | Llm | VideoEncoder, setting: str) -> dict[str, Any]:
    """What a model is: its path, the commit that is used (of a folder: null), the SHA-256 of its files.

    Raises:
        ValueError: as `located`.
    """
    found: Encoder | Llm | VideoEncoder = located(section, setting)  # pyright: ignore[reportArgumentType]
    folder = Path(found.path)
    # A snapshot's folder is named by its commit.
    revision = None if folder == Path(section.path) else folder.name
    return {"path": section.path, "revision": revision, "files": hashes(folder)}


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that a model consists of, by name."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in KINDS and path.is_file())
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        return dict(zip((path.name for path in paths), pool.map(sha256, paths), strict=True))


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def locked(found: Iterable[dict[str, Any]], lock: dict[str, Locked], file: Path) -> dict[str, Locked]:
    """The lock with the models of the hub that were found.

    Args:
        found: as `identity` gives them.
        lock: as it was read; a model with another commit there is locked anew.
        file: where it is from, for errors.

    Raises:
        LockError: a model has the commit that is locked, but other files.
    """
    added = dict(lock)
    for model in found:
        if model["revision"] is None:
            continue
        now, before = Locked(revision=model["revision"], files=model["files"]), lock.get(model["path"])
        if before is not None and before.revision == now.revision and before.files != now.files:
            names = sorted(
                name for name in before.files | now.files if before.files.get(name) != now.files.get(name)
            )
            raise LockError(
                f"{model['path']} at {now.revision}: {', '.join(names[:5])} differ from {file}, which was written "
                "when they were first fetched; delete the model from the hub's cache to fetch it anew, or, if "
                "the files are right, its entry in the lock"
            )
        added[model["path"]] = now
    return added
