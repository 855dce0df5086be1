"""LibriSpeech (Panayotov et al., ICASSP 2015; OpenSLR 12) and Mini LibriSpeech (OpenSLR 31): English audiobooks.

`LibriSpeech/<split>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac`, and in every chapter
`<speaker>-<chapter>.trans.txt` with lines `<speaker>-<chapter>-<utterance> THE WORDS`. Sizes and MD5 sums are those of
the official md5sum.txt; the MD5 sums of Mini LibriSpeech are those of public recipes.
"""

from collections.abc import Iterator
from typing import Any

from steermoe.config.corpora import LibriSpeech, MiniLibriSpeech
from steermoe.corpora import tables
from steermoe.corpora.archives import ArchiveError, hidden
from steermoe.corpora.download import Places, Source
from steermoe.corpora.manifest import Entry, ManifestReader
from steermoe.corpora.reader import card

ROOT = "LibriSpeech"
ARCHIVES = {  # OpenSLR resource, bytes, md5
    "train-clean-100": (12, 6_387_309_499, "2a93770f6d5c6c964bc36631d331a522"),
    "train-clean-360": (12, 23_049_477_885, "c0e676e450a7ff2f54aeade5171606fa"),
    "train-other-500": (12, 30_593_501_606, "d1a0fd59409feb2c614ce4d30c387708"),
    "dev-clean": (12, 337_926_286, "42e2234ba48799c1f50f24a7926300a1"),
    "dev-other": (12, 314_305_928, "c8d0bcc9cca99d4f8b62fcc847357931"),
    "test-clean": (12, 346_663_984, "32fa31d27d2e1cad72775fee3f4849a9"),
    "test-other": (12, 328_757_843, "fb5a50374b501bb3bac4815ee91d3135"),
    "train-clean-5": (31, None, "5df7d4e78065366204ca6845bb08f490"),
    "dev-clean-2": (31, None, "6d7ab67ac6a1d2c993d050e16d61080d"),
}


def sources(settings: Any) -> list[Source]:
    """Return the archives of the splits in use."""
    found = []
    for split in settings.used:
        resource, size, md5 = ARCHIVES[split]
        url, folder = f"https://www.openslr.org/resources/{resource}/{split}.tar.gz", f"{ROOT}/{split}"
        found.append(Source(f"{split}.tar.gz", folder, url, (folder,), size, f"md5:{md5}"))
    return found


def entries(settings: Any, places: Places, split: str, left_out: list[str]) -> Iterator[Entry]:
    """Yield the utterances of a split; every recording must have a transcript, and the reverse."""
    for chapter in sorted(places(f"{ROOT}/{split}").glob("*/*")):
        if not chapter.is_dir() or hidden(chapter.name):
            continue
        speaker = chapter.parent.name
        listed = chapter / f"{speaker}-{chapter.name}.trans.txt"
        recordings = {path.stem for path in chapter.glob("*.flac") if not hidden(path.name)}
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


LIBRISPEECH = ManifestReader("librispeech", LibriSpeech.SPLITS, card("librispeech"), sources, entries)
MINI = ManifestReader("minilibrispeech", MiniLibriSpeech.SPLITS, card("minilibrispeech"), sources, entries)
