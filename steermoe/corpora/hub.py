"""Data sets on the Hugging Face hub, at one commit: which files there are, with sizes and checksums."""

from collections.abc import Sequence

from steermoe.corpora.downloads import UnavailableError

ENDPOINT = "https://huggingface.co"


def base(repository: str, revision: str) -> str:
    """The URL below which the files of a data set are."""
    return f"{ENDPOINT}/datasets/{repository}/resolve/{revision}"


def listing(repository: str, revision: str, folder: str) -> dict[str, tuple[int, str]]:
    """The files in a folder of a data set ("" is all of it), and below it.

    Returns:
        path: (bytes, checksum as of `checksums.verify`: SHA-256 of large files, else git's SHA-1).

    Raises:
        UnavailableError: the hub cannot be reached, or has no such repository, revision or folder.
    """
    from huggingface_hub import HfApi, errors
    from huggingface_hub.hf_api import RepoFile

    try:
        tree = HfApi(endpoint=ENDPOINT).list_repo_tree(
            repository, folder or None, recursive=True, revision=revision, repo_type="dataset"
        )
        files = [item for item in tree if isinstance(item, RepoFile)]
    except errors.HfHubHTTPError as error:
        raise UnavailableError(
            f"{ENDPOINT}/datasets/{repository}: cannot list folder {folder!r} at revision {revision} "
            f"({type(error).__name__}, status {error.response.status_code})"
        ) from error
    # The error of the HTTP library that the hub's client uses; which library that is changes.
    except (errors.HTTPError, OSError) as error:  # pyright: ignore[reportPrivateImportUsage]
        raise UnavailableError(
            f"{ENDPOINT} cannot be reached ({type(error).__name__}); is this machine online?"
        ) from error
    return {
        file.path: (file.size, f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}")
        for file in files
    }


def known(files: dict[str, tuple[int, str]], paths: Sequence[str], repository: str) -> None:
    """Check that a listing has all `paths`.

    Raises:
        UnavailableError: one is not there.
    """
    for path in paths:
        if path not in files:
            raise UnavailableError(
                f"{ENDPOINT}/datasets/{repository}: no file {path!r} at this revision; it has "
                f"{len(files)} others; another revision may"
            )
