"""LibriSpeech (Panayotov et al., ICASSP 2015; OpenSLR 12): read English audiobooks.

`LibriSpeech/<split>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac`, and in every chapter
`<speaker>-<chapter>.trans.txt` with lines `<speaker>-<chapter>-<utterance> THE WORDS`. Sizes and MD5 sums are
those of the official md5sum.txt.
"""

from collections.abc import Iterator
from pathlib import Path

from steermoe.config import LibriSpeech
from steermoe.corpora import index, sources, tables
from steermoe.corpora.archives import ArchiveError
from steermoe.corpora.card import Card
from steermoe.corpora.index import Entry
from steermoe.corpora.places import locate
from steermoe.corpora.recordings import hidden
from steermoe.corpora.sources import Source

SPLITS = LibriSpeech.SPLITS
ROOT = "LibriSpeech"
BASE = "https://www.openslr.org/resources/12"
ARCHIVES = {  # bytes, md5
    "train-clean-100": (6_387_309_499, "2a93770f6d5c6c964bc36631d331a522"),
    "train-clean-360": (23_049_477_885, "c0e676e450a7ff2f54aeade5171606fa"),
    "train-other-500": (30_593_501_606, "d1a0fd59409feb2c614ce4d30c387708"),
    "dev-clean": (337_926_286, "42e2234ba48799c1f50f24a7926300a1"),
    "dev-other": (314_305_928, "c8d0bcc9cca99d4f8b62fcc847357931"),
    "test-clean": (346_663_984, "32fa31d27d2e1cad72775fee3f4849a9"),
    "test-other": (328_757_843, "fb5a50374b501bb3bac4815ee91d3135"),
}
CARD = Card(
    name="LibriSpeech",
    hours=960,
    bytes=sum(size for size, _ in ARCHIVES.values()),
    licence="CC BY 4.0",
    source="https://www.openslr.org/12",
    restrictions="name the authors, and say what you changed; commercial use is allowed",
    citation="Panayotov, Chen, Povey, Khudanpur: LibriSpeech: an ASR corpus based on public domain audio "
    "books. ICASSP 2015",
    language="en",
    task="transcribe",
    metric="WER",
    normalizer="case and punctuation away (the references are upper case without punctuation)",
)
parts, rows = index.parts, index.rows


def fetch(settings: LibriSpeech, dest: Path) -> None:
    """Put the splits in use into `dest`.

    Raises:
        UnavailableError, ArchiveError, SpaceError: as `sources.fetch`; ArchiveError also where a transcript
            or a recording is missing.
    """
    files = [archive(BASE, split, *ARCHIVES[split]) for split in settings.used]
    sources.fetch("librispeech", files, settings, dest)
    for split in settings.used:
        index.write_index(dest, split, entries(dest, split))


def archive(base: str, split: str, size: int | None, md5: str) -> Source:
    """The archive of a split."""
    folder = f"{ROOT}/{split}"
    return Source(base, f"{split}.tar.gz", holds=folder, inside=(folder,), bytes=size, checksum=f"md5:{md5}")


def entries(fetched: Path, split: str) -> Iterator[Entry]:
    """The utterances of a split, in order.

    Raises:
        ArchiveError: a recording without a transcript, a transcript without a recording, or a line that is
            neither.
    """
    folder = locate(fetched)(f"{ROOT}/{split}")
    for chapter in sorted(p for p in folder.glob("*/*") if p.is_dir() and not hidden(p.name)):
        speaker = chapter.parent.name
        listed = chapter / f"{speaker}-{chapter.name}.trans.txt"
        recordings = {path.stem for path in chapter.glob("*.flac") if not hidden(path.name)}
        if not listed.is_file():
            raise ArchiveError(f"{listed}: no such file, for {len(recordings)} recordings beside it")
        for number, line in tables.read_lines(listed):
            name, _, words = line.partition(" ")
            if not words.strip():
                raise ArchiveError(
                    f"{listed}, line {number}: found {line!r:.80}, expected `utterance THE WORDS`"
                )
            if name not in recordings:
                raise ArchiveError(f"{listed}, line {number}: no recording {name}.flac, or listed twice")
            recordings.remove(name)
            audio = f"{ROOT}/{split}/{speaker}/{chapter.name}/{name}.flac"
            yield Entry(name, audio, "en", speaker, words.strip())
        if recordings:
            raise ArchiveError(f"{listed}: no transcript of {', '.join(sorted(recordings)[:5])}")
