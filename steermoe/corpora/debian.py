"""Packages of Debian: downloaded by apt, which needs no rights for that, and not installed."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.download import Source, UnavailableError, verify

OPTIONS = ("-q", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30")
LIMIT = 600.0  # seconds for a package


def download(packages: Sequence[Source], folder: Path) -> None:
    """Download packages into `folder`, as `Source.path` names them: `<package>_<version>_all.deb`.

    Raises:
        UnavailableError: there is no apt, or apt cannot download this version.
        ArchiveError: a package has another checksum.
    """
    apt = shutil.which("apt-get")
    if apt is None:
        raise UnavailableError("no Debian package can be downloaded, as there is no apt-get")
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        path = folder / package.path
        if not path.exists():
            name, version, _ = package.path.split("_")
            command = [apt, "download", *OPTIONS, f"{name}={version}"]
            print(f"apt-get download {name}={version}", flush=True)
            try:
                subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=LIMIT)
            except (subprocess.SubprocessError, OSError) as error:
                status = getattr(error, "returncode", None) or type(error).__name__
                raise UnavailableError(
                    f"Debian package {name}={version} cannot be downloaded: apt-get says {status}; is this machine "
                    "online, and are its lists up to date (apt-get update)?"
                ) from error
        try:
            verify(package, path)
        except ArchiveError:
            path.unlink()  # the next try downloads it again
            raise
