"""Files of the Hugging Face hub: downloaded by its client, or found in its cache."""

from collections.abc import Iterable
from pathlib import Path

MODEL_FILES = ("model*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
LEFT = ("*.fp32*", "*.fp16*")  # the same weights once more, in another precision
PATIENCE = 4  # seconds that the hub may take to answer


def snapshot(
    repository: str,
    revision: str | None,
    local_only: bool,
    files: Iterable[str] = MODEL_FILES,
    without: Iterable[str] = (),
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


def silence() -> str:
    """Return why the hub does not answer; "" if it does. Its client would try again for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except HTTPError as error:
        return f"the hub does not answer ({error})"
    return ""
