"""Models and adapters: a path, a name or an id of the Hugging Face hub, to a folder; and what identifies them.

A model is a folder or file, an id of the hub with a commit, a name of `weights.NAMED`, or a file in a package with its
SHA-256. What is in another format is converted first.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from steermoe import weights
from steermoe.config import PACKAGE, Encoder, Llm, Locked, Training, VideoEncoder, of_the_hub
from steermoe.weights.convert import converted, format_of, sha256
from steermoe.weights.fetch import member
from steermoe.weights.hub_files import LEFT, MODEL_FILES, snapshot

Base = TypeVar("Base", Encoder, Llm, VideoEncoder)
TOKENIZER = "tokenizer.json"
KINDS = (".safetensors", ".json", ".jsonl", ".txt", ".model", ".jinja")  # files that a model consists of
WEIGHTS, CONFIG = "adapter.safetensors", "config.json"  # of an adapter
PARTS = ("encoder", "llm")  # folders of a merged adapter
HASHED_AT_ONCE = 4  # files: hashing releases Python's lock
FORMATS = {"encoder": "ctranslate2", "llm": "gguf"}  # that are converted, by section


class LockError(ValueError):
    """The files of a model are not those in the lock next to the profile."""


def located(section: Base, setting: str, local_files_only: bool = False) -> Base:
    """Return the section with the folder of the model's files as its path; download or convert them where necessary.

    Args:
        section: `path` is a folder in Hugging Face format, a Whisper folder of CTranslate2, a GGUF file, a name of
            `weights.NAMED`, `package:NAME==VERSION/MEMBER`, or an id of the hub; `revision` the hub's commit (null for
            the latest), or the SHA-256 of the package's member.
        setting: name of the configuration's section, for errors.
        local_files_only: do not download anything.

    Raises:
        ValueError: there is no such model, or what is there is not for this section.
    """
    if Path(section.path).exists() and section.revision is not None:
        raise ValueError(
            f"{setting}.revision: found {section.revision!r}, but {section.path!r} is a folder here; legal: null"
        )
    try:
        found = _found(section, setting, local_files_only)
    except ValueError as error:
        raise ValueError(f"{setting}.path: {error}") from error
    if found == Path(section.path):
        return section
    return section.model_copy(update={"path": str(found), "revision": None})


def _found(section: Any, setting: str, local_files_only: bool) -> Path:
    path, revision = section.path, section.revision
    if Path(path).exists():
        kind = format_of(Path(path))
        if kind not in (None, FORMATS.get(setting)) or (kind is None and not Path(path).is_dir()):
            raise ValueError(f"found {path!r}, {kind or 'a file'}; legal: {_legal(setting)}")
        return converted(Path(path))
    if path in weights.NAMED:
        if weights.NAMED[path].use != setting:
            raise ValueError(
                f"found {path!r}, which is for {weights.NAMED[path].use}; legal: {_legal(setting)}"
            )
        return weights.fetched(path, local_files_only)
    if path.startswith(PACKAGE):
        folder = member(path.removeprefix(PACKAGE), revision or "", local_files_only)
        if folder.is_file() or not any(folder.glob("*.safetensors")):
            raise ValueError(f"found {path!r}, which holds no weights; legal: {_legal(setting)}")
        return folder
    if not of_the_hub(path):
        raise ValueError(
            f"found {path!r}, which does not exist (seen from the working directory); legal: {_legal(setting)}"
        )
    try:
        return snapshot(path, revision, local_files_only, MODEL_FILES, LEFT)
    except ValueError as error:
        raise ValueError(
            f"found {path!r}, which is neither a folder (seen from the working directory) nor a model on the hub: "
            f"{error}; legal: {_legal(setting)}"
        ) from error


def _legal(setting: str) -> str:
    names = [name for name, model in weights.NAMED.items() if model.use == setting]
    also = {"encoder": "a Whisper folder of CTranslate2", "llm": "a GGUF file"}.get(setting)
    ways = ["a folder in Hugging Face format with safetensors", also, *names, "an id of the hub"]
    return ", ".join(filter(None, ways)) + f", or {PACKAGE}NAME==VERSION/MEMBER with its SHA-256 as revision"


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
    own = [f"{part}/{pattern}" for part in PARTS for pattern in MODEL_FILES]
    try:
        return snapshot(str(source), revision, local_files_only, [WEIGHTS, CONFIG, *own])
    except ValueError as error:
        raise ValueError(
            f"{source}: neither a folder nor a repository that can be downloaded from the hub: {error}"
        ) from error


def identity(section: Encoder | Llm | VideoEncoder, setting: str) -> dict[str, Any]:
    """Return what a model is: its path, the commit of the hub that is used or null, the SHA-256 of its files.

    Raises:
        ValueError: as `located`.
    """
    found: Encoder | Llm | VideoEncoder = located(section, setting)  # pyright: ignore[reportArgumentType]
    folder = Path(found.path)
    # A snapshot's folder is named by its commit.
    revision = folder.name if of_the_hub(section.path) and folder != Path(section.path) else None
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
