"""Where the files of a fetched corpus are: in its `data/`, or where the user has them."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from steermoe.corpora.archives import ArchiveError

NOTE = "source.json"
EMBEDDED = ".embedded"  # folder of the recordings that a table itself holds; in `data/` of every corpus


@dataclass(frozen=True)
class Places:
    """The folder with the files of a corpus, and what of them lies elsewhere."""

    corpus: str
    data: Path
    elsewhere: dict[str, Path]

    def __call__(self, path: str) -> Path:
        """The path of a file or folder of the corpus."""
        if path.startswith(f"{EMBEDDED}/"):
            return self.data / path
        for holds, place in self.elsewhere.items():
            if not holds:
                return place / path
            if path == holds or path.startswith(f"{holds}/"):
                return place / path.removeprefix(holds).lstrip("/")
        return self.data / path

    def recording(self, path: str, listed: str) -> str:
        """`path` of a recording, which must be there, inside of the corpus; `listed` is the table and line with it.

        Raises:
            ArchiveError: it is not.
        """
        inside = not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
        if not inside or not self(path).is_file():
            raise ArchiveError(f"{listed}: no recording {self(path)}")
        return path


def locate(fetched: Path) -> Places:
    """Where the files of a fetched corpus are."""
    note = json.loads((fetched / NOTE).read_text(encoding="utf-8"))
    elsewhere = {of: Path(at) for of, at in note["places"].items() if at is not None}
    return Places(note["corpus"], fetched / "data", elsewhere)
