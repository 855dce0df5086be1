"""Where the files of a trained adapter are, and what tells it from others. Nothing here reads weights."""

from pathlib import Path

from steermoe.config import Training
from steermoe.hub import FETCHED, sha256

WEIGHTS, CONFIG = "adapter.safetensors", "config.json"
PARTS = ("encoder", "llm")  # folders of a merged adapter


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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    own = [f"{part}/{pattern}" for part in PARTS for pattern in FETCHED]
    try:
        files = [WEIGHTS, CONFIG, *own]
        return Path(
            snapshot_download(
                str(source), revision=revision, local_files_only=local_files_only, allow_patterns=files
            )
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"{source}: neither a folder nor a repository that the hub gives us: {error}"
        ) from error


def adapters_of(training: Training) -> dict[str, dict[str, str]]:
    """SHA-256 of the files of the adapters that a training reads: of its `teacher`, of `init_from`; {} without any.

    Raises:
        ValueError: there is no such adapter.
    """
    found = {}
    if training.distillation is not None:
        found["teacher"] = _hashes(training.distillation.teacher, "training.distillation.teacher")
    if training.init_from is not None:
        found["init_from"] = _hashes(training.init_from, "training.init_from")
    return found


def _hashes(source: str, setting: str) -> dict[str, str]:
    try:
        folder = adapter_folder(source)
    except ValueError as error:
        raise ValueError(f"{setting}: found {error}") from error
    if missing := [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]:
        raise ValueError(
            f"{setting}: found {source!r}, which lacks {' and '.join(missing)}; legal: an adapter"
        )
    return {name: sha256(folder / name) for name in (WEIGHTS, CONFIG)}
