"""AISHELL-1 (Bu et al., O-COCOSDA 2017; OpenSLR 33): read Mandarin, 400 speakers.

`data_aishell.tgz` has an archive a speaker in `data_aishell/wav/`, each with `<split>/<speaker>/*.wav`, and
`data_aishell/transcript/aishell_transcript_v0.8.txt` with lines `<utterance> 词 词`. Some recordings have no
transcript; they are left out, as in every published recipe. Two things are done to transcripts: the spaces
between words, which no one hears, are taken out, and full-width letters become upper-case ASCII ones (as
lhotse and wenet do).
"""

import json
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from steermoe.atomic_io import write_text
from steermoe.config import Aishell1
from steermoe.corpora import index, sources, tables
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.card import Card
from steermoe.corpora.index import Entry
from steermoe.corpora.places import locate
from steermoe.corpora.recordings import hidden
from steermoe.corpora.sources import Source

SPLITS = Aishell1.SPLITS
ROOT = "data_aishell"
TRANSCRIPTS = f"{ROOT}/transcript/aishell_transcript_v0.8.txt"
UNTRANSCRIBED = 0.01  # share of recordings that may lack a transcript; in the official set 0.2 %
SOURCE = Source(
    base="https://www.openslr.org/resources/33",
    path="data_aishell.tgz",
    holds=ROOT,
    inside=(ROOT,),
    bytes=15_582_913_665,
    checksum="md5:2f494334227864a8a8fec932999db9d8",
    factor=2.3,  # the speakers' archives lie beside their recordings for a while
    nested=f"{ROOT}/wav",
)
CARD = Card(
    name="AISHELL-1",
    hours=178,
    bytes=SOURCE.bytes,
    licence="Apache-2.0",
    source="https://www.openslr.org/33",
    restrictions="keep the licence and the notices; the authors ask for academic use to cite them",
    citation="Bu, Du, Na, Wu, Zheng: AISHELL-1: an open-source Mandarin speech corpus and a speech "
    "recognition baseline. O-COCOSDA 2017",
    language="zh",
    task="transcribe",
    metric="CER",
    normalizer="no spaces, ASCII letters in upper case (done here)",
)
_WIDE_CAPITAL, _WIDE_SMALL = 0xFF21, 0xFF41  # full-width A and a
_ASCII = {first + i: chr(ord("A") + i) for first in (_WIDE_CAPITAL, _WIDE_SMALL) for i in range(26)}
parts, rows = index.parts, index.rows


def fetch(settings: Aishell1, dest: Path) -> None:
    """Put the corpus into `dest`, and the number of untranscribed recordings into untranscribed.json.

    Raises:
        UnavailableError, ArchiveError, SpaceError: as `sources.fetch`; ArchiveError also where over 1 % of
            the recordings have no transcript.
    """
    sources.fetch("aishell1", [SOURCE], settings, dest)
    transcripts = read_transcripts(locate(dest)(TRANSCRIPTS))
    without = {}
    for split in settings.used:
        missing: list[str] = []
        count = index.write_index(dest, split, entries(dest, split, transcripts, missing))
        if len(missing) > UNTRANSCRIBED * (count + len(missing)):
            raise ArchiveError(
                f"{TRANSCRIPTS}: no transcript of {len(missing)} of {count + len(missing)} recordings of "
                f"{split}, such as {missing[0]}"
            )
        without[split] = len(missing)
        if missing:
            print(f"aishell1 {split}: {len(missing)} recordings without transcript left out", file=sys.stderr)
    write_text(dest / "untranscribed.json", json.dumps(without, indent=1) + "\n")


def read_transcripts(path: Path, besides: Collection[str] = ()) -> dict[str, str]:
    """Utterances and what is said in them, normalised; but for those of `besides`.

    Raises:
        ArchiveError: the file is not there, or a line has no words.
    """
    if not path.is_file():
        raise ArchiveError(f"{path}: no such file of transcripts")
    found = {}
    for number, line in tables.read_lines(path):
        name, words = [*line.split(maxsplit=1), "", ""][:2]
        if name in besides:
            continue
        if not words:
            raise ArchiveError(f"{path}, line {number}: found {line!r:.80}, expected an utterance and words")
        found[name.removesuffix(".wav")] = normalise(words)
    return found


def normalise(words: str) -> str:
    """Without spaces, full-width letters as upper-case ASCII ones."""
    return "".join(words.split()).translate(_ASCII).upper()


def entries(fetched: Path, split: str, transcripts: dict[str, str], missing: list[str]) -> Iterator[Entry]:
    """The utterances of a split, in order; names of recordings without transcript are added to `missing`."""
    folder = locate(fetched)(f"{ROOT}/wav/{split}")
    for path in sorted(path for path in folder.glob("*/*.wav") if not hidden(path.name)):
        words = transcripts.get(path.stem)
        if words is None:
            missing.append(path.stem)
        else:
            speaker = path.parent.name
            audio = f"{ROOT}/wav/{split}/{speaker}/{path.name}"
            yield Entry(path.stem, audio, "zh", speaker, words)
