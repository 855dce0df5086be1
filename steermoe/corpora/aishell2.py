"""AISHELL-2 (Du et al., arXiv 1808.10583): read Mandarin, 1000 hours, from a folder that the user has.

Nothing of it can be downloaded here: the training set is given to universities on application, the development
and test sets at the same place. In the folder `mirror`:

    iOS/data/{wav.scp,trans.txt,wav/...}                                    split train
    AISHELL-DEV-TEST-SET/{iOS,Android,Mic}/{dev,test}/{trans.txt,wav/...}   splits ios-dev, ios-test, ...

`trans.txt` has lines of an utterance, a tab, and the words. A recording is `wav/<speaker>/<utterance>.wav`, or
where `wav.scp` (utterance, tab, path) says. Text is normalised as that of `aishell1`. Of `train`, what has a
recording or a transcript alone is left out, and one utterance that the corpus' own recipe calls bad: so does that
recipe. The layout is that which public recipes read; it could not be compared with the corpus itself.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from steermoe.atomic_io import project_root, write_text
from steermoe.config import Aishell2
from steermoe.corpora import index, recordings, sources, tables
from steermoe.corpora.aishell1 import read_transcripts
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.card import Card
from steermoe.corpora.index import Entry

SPLITS = Aishell2.SPLITS
CHANNELS = {"ios": "iOS", "android": "Android", "mic": "Mic"}
BAD = ("IC0803W0380",)
ALONE = 0.01  # share of the utterances of `train` that may have a recording or a transcript alone
CARD = Card(
    name="AISHELL-2",
    hours=1000,
    bytes=None,
    licence="AISHELL-2 licence: academic use only, on application",
    source="https://www.aishelltech.com/aishell_2",
    restrictions="no commercial use; must not be passed on; models trained on it fall under what you signed",
    citation="Du, Na, Liu, Bu: AISHELL-2: transforming Mandarin ASR research into industrial scale. "
    "arXiv 1808.10583",
    language="zh",
    task="transcribe",
    metric="CER",
    normalizer="no spaces, ASCII letters in upper case (done here)",
)
parts, rows = index.parts, index.rows


def fetch(settings: Aishell2, dest: Path) -> None:
    """Note where the corpus lies, and list the splits in use; what is left out of `train`, in left_out.json.

    Raises:
        ArchiveError: the folder, a split, a transcript or a recording is not there; of `train`, over 1 % of them.
    """
    folder, left_out = project_root() / settings.mirror, list[str]()
    for split in settings.used:
        if not (folder / folder_of(split) / "trans.txt").is_file():
            raise ArchiveError(
                f"mirror {settings.mirror!r}: no file {folder_of(split)}/trans.txt, for split {split!r}; it is "
                f"had on application only: {CARD.source}"
            )
        count = index.write_index(dest, split, entries(folder, split, left_out))
        if split == "train" and len(left_out) > ALONE * (count + len(left_out)):
            raise ArchiveError(
                f"{folder / folder_of(split)}: {len(left_out)} of {count + len(left_out)} utterances have a "
                f"recording or a transcript alone, such as {left_out[0]}"
            )
    if left_out:
        write_text(dest / "left_out.json", json.dumps(left_out, indent=1) + "\n")
        print(f"aishell2 train: {len(left_out)} utterances left out (left_out.json)", file=sys.stderr)
    sources.use_folder("aishell2", folder.resolve(), dest)


def folder_of(split: str) -> str:
    """Where a split is."""
    if split == "train":
        return "iOS/data"
    channel, _, part = split.partition("-")
    return f"AISHELL-DEV-TEST-SET/{CHANNELS[channel]}/{part}"


def entries(folder: Path, split: str, left_out: list[str]) -> Iterator[Entry]:
    """The utterances of a split, by name; names of those of `train` that are not whole are added to `left_out`.

    Raises:
        ArchiveError: an utterance of another split has no recording, or a recording no transcript.
    """
    inside = folder_of(split)
    transcripts = read_transcripts(folder / inside / "trans.txt", BAD)
    heard = _recordings(folder / inside)
    whole = transcripts.keys() & heard.keys()
    if split == "train":
        left_out += sorted((transcripts.keys() | heard.keys()) - whole)
    elif untold := sorted(heard.keys() - whole):
        raise ArchiveError(f"{folder / inside / 'trans.txt'}: no transcript of {', '.join(untold[:5])}")
    elif unheard := sorted(transcripts.keys() - whole):
        raise ArchiveError(f"{folder / inside}: no recording {unheard[0]}.wav, of trans.txt")
    for name in sorted(whole):
        words, path = transcripts[name], heard[name]
        yield Entry(name, f"{inside}/{path}", "zh", Path(path).parent.name or "unknown", words)


def _recordings(folder: Path) -> dict[str, str]:
    """Utterances and paths of their recordings in the folder."""
    listed = folder / "wav.scp"
    if not listed.is_file():
        found = recordings.files(folder / "wav") if (folder / "wav").is_dir() else ()
        return {path.stem: path.relative_to(folder).as_posix() for path in found if path.suffix == ".wav"}
    found = {}
    for number, line in tables.read_lines(listed):
        name, _, path = line.partition("\t")
        if not path.strip() or Path(path).is_absolute() or ".." in Path(path).parts:
            raise ArchiveError(f"{listed}, line {number}: found {line!r:.80}, expected `utterance<tab>path`")
        if (folder / path.strip()).is_file():
            found[name] = path.strip()
    return found
