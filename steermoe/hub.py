"""Models and adapters: a path or an id of the Hugging Face hub, to a folder; and what identifies them.

A model is a folder, or an id of the hub with a commit. Nothing here reads weights.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from steermoe.config import Encoder, Llm, Locked, Training, VideoEncoder, of_the_hub

Base = TypeVar("Base", Encoder, Llm, VideoEncoder)
TOKENIZER = "tokenizer.json"
KINDS = (".safetensors", ".json", ".jsonl", ".txt", ".model", ".jinja")  # files that a model consists of
FETCHED = ("model*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
LEFT = ("*.fp32*", "*.fp16*")  # the same weights once more, in another precision
WEIGHTS, CONFIG = "adapter.safetensors", "config.json"  # of an adapter
PARTS = ("encoder", "llm")  # folders of a merged adapter
HASHED_AT_ONCE = 4  # files: hashing releases Python's lock


class LockError(ValueError):
    """The files of a model are not those in the lock next to the profile."""


def located(section: Base, setting: str, local_files_only: bool = False) -> Base:
    """Return the section with the folder of the model's files as its path; download them where necessary.

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
    try:
        folder = _snapshot(section.path, section.revision, local_files_only, FETCHED, LEFT)
    except ValueError as error:
        raise ValueError(
            f"{found}safetensors (seen from the working directory) nor a model on the hub: {error}"
        ) from error
    return section.model_copy(update={"path": str(folder), "revision": None})


def adapter_folder(source: str | Path, revision: str | None = None, local_files_only: bool = False) -> Path:
    """Return the folder of an adapter, downloaded from the hub unless `source` is a folder.

    Args:
        source: a folder, or a repository on the hub.
        revision: branch, tag or commit of the repository; None: its main branch.
        local_files_only: do not download anything.

    Raises:
        ValueError: there is neither such a folder nor such a repository.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"{source}: found revision {revision!r} of a folder; only repositories have one")
        return folder
    own = [f"{part}/{pattern}" for part in PARTS for pattern in FETCHED]
    try:
        return _snapshot(str(source), revision, local_files_only, [WEIGHTS, CONFIG, *own])
    except ValueError as error:
        raise ValueError(
            f"{source}: neither a folder nor a repository that can be downloaded from the hub: {error}"
        ) from error


def _snapshot(
    repository: str, revision: str | None, local_only: bool, files: Iterable[str], without: Iterable[str] = ()
) -> Path:
    """Return the folder of some files of a repository on the hub, downloaded where necessary.

    Raises:
        ValueError: the repository or the hub cannot be reached; says so offline, too.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            local_files_only=local_only,
            allow_patterns=list(files),
            ignore_patterns=list(without),
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ValueError(str(error)) from error
    return Path(folder)


def identity(section: Encoder | Llm | VideoEncoder, setting: str) -> dict[str, Any]:
    """Return what a model is: its path, the commit that is used (null for a folder), the SHA-256 of its files.

    Raises:
        ValueError: as `located`.
    """
    found: Encoder | Llm | VideoEncoder = located(section, setting)  # pyright: ignore[reportArgumentType]
    folder = Path(found.path)
    # A snapshot's folder is named by its commit.
    revision = None if folder == Path(section.path) else folder.name
    return {"path": section.path, "revision": revision, "files": hashes(folder)}


def adapters_of(training: Training) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of the files of the adapters that a training reads: its `teacher`, its `init_from`.

    Raises:
        ValueError: there is no such adapter.
    """
    read = {}
    if training.distillation is not None:
        read["teacher"] = (training.distillation.teacher, "training.distillation.teacher")
    if training.init_from is not None:
        read["init_from"] = (training.init_from, "training.init_from")
    found = {}
    for name, (source, setting) in read.items():
        try:
            folder = adapter_folder(source)
        except ValueError as error:
            raise ValueError(f"{setting}: found {error}") from error
        if missing := [file for file in (WEIGHTS, CONFIG) if not (folder / file).is_file()]:
            raise ValueError(
                f"{setting}: found {source!r}, which lacks {' and '.join(missing)}; legal: an adapter"
            )
        found[name] = {file: sha256(folder / file) for file in (WEIGHTS, CONFIG)}
    return found


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that a model consists of, by name."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in KINDS and path.is_file())
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        return dict(zip((path.name for path in paths), pool.map(sha256, paths), strict=True))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locked(found: Iterable[dict[str, Any]], lock: dict[str, Locked], file: Path) -> dict[str, Locked]:
    """Return the lock with the models of the hub that were found.

    Args:
        found: as `identity` returns them.
        lock: as it was read; a model with another commit in it is locked again.
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
                "when they were first downloaded; delete the model from the hub's cache to download it again, or, if "
                "the files are right, its entry in the lock"
            )
        added[model["path"]] = now
    return added
