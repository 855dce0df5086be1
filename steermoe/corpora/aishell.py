"""AISHELL-1 (Bu et al., 2017; OpenSLR 33) and AISHELL-2 (Du et al., arXiv 1808.10583): read Mandarin.

AISHELL-1: `data_aishell.tgz` has an archive per speaker in `data_aishell/wav/`, each with `<split>/<speaker>/*.wav`,
and `data_aishell/transcript/aishell_transcript_v0.8.txt` with lines `<utterance> 词 词`.

AISHELL-2 is given to universities on application, so it is read from the folder `mirror`:

    iOS/data/{wav.scp,trans.txt,wav/...}                                    split train
    AISHELL-DEV-TEST-SET/{iOS,Android,Mic}/{dev,test}/{trans.txt,wav/...}   splits ios-dev, ios-test, ...

`trans.txt` has lines of an utterance, a tab, and the words. A recording is `wav/<speaker>/<utterance>.wav`, or where
`wav.scp` (utterance, tab, path) says. The layout is that of public recipes; it could not be compared with the corpus.

In transcripts the spaces between words are removed and full-width letters become upper-case ASCII (as lhotse and wenet
do). Recordings without transcript, of AISHELL-2's `train` also the reverse and one bad utterance, are left out, as in
the published recipes.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from steermoe.config.corpora import Aishell1, Aishell2
from steermoe.corpora import tables
from steermoe.corpora.archives import ArchiveError, hidden
from steermoe.corpora.download import Places, Source
from steermoe.corpora.manifest import Entry, ManifestReader
from steermoe.corpora.reader import card

ROOT = "data_aishell"
TRANSCRIPTS = f"{ROOT}/transcript/aishell_transcript_v0.8.txt"
ARCHIVE = Source(
    "data_aishell.tgz",
    holds=ROOT,
    url="https://www.openslr.org/resources/33/data_aishell.tgz",
    inside=(ROOT,),
    bytes=15_582_913_665,
    checksum="md5:2f494334227864a8a8fec932999db9d8",
    nested=f"{ROOT}/wav",
)
CHANNELS = {"ios": "iOS", "android": "Android", "mic": "Mic"}
BAD = ("IC0803W0380",)
INCOMPLETE = 0.01  # share of recordings that may lack a transcript, or the reverse
_WIDE_CAPITAL, _WIDE_SMALL = 0xFF21, 0xFF41  # full-width A and a
_ASCII = {first + i: chr(ord("A") + i) for first in (_WIDE_CAPITAL, _WIDE_SMALL) for i in range(26)}


def read_transcripts(path: Path, without: Collection[str] = ()) -> dict[str, str]:
    """Return the utterances and their normalised transcripts, except those of `without`.

    Raises:
        ArchiveError: the file does not exist, or a line has no words.
    """
    found = {}
    for number, line in tables.read_lines(path):
        name, words = [*line.split(maxsplit=1), "", ""][:2]
        if name in without:
            continue
        if not words:
            raise ArchiveError(f"{path}, line {number}: found {line!r:.80}, expected an utterance and words")
        found[name.removesuffix(".wav")] = normalise(words)
    return found


def normalise(words: str) -> str:
    """Remove spaces, and make full-width letters upper-case ASCII."""
    return "".join(words.split()).translate(_ASCII).upper()


def entries1(settings: Aishell1, places: Places, split: str, left_out: list[str]) -> Iterator[Entry]:
    """Yield the utterances of a split of AISHELL-1."""
    transcripts, missing = read_transcripts(places(TRANSCRIPTS)), []
    paths = sorted(p for p in places(f"{ROOT}/wav/{split}").glob("*/*.wav") if not hidden(p.name))
    for path in paths:
        speaker = path.parent.name
        if path.stem in transcripts:
            audio = f"{ROOT}/wav/{split}/{speaker}/{path.name}"
            yield Entry(path.stem, audio, "zh", speaker, transcripts[path.stem])
        else:
            missing.append(f"{path.stem}: no transcript")
    _check_few(missing, len(paths), f"{TRANSCRIPTS}, split {split}")
    left_out += missing


def folder_of(split: str) -> str:
    """Return where a split of AISHELL-2 is."""
    if split == "train":
        return "iOS/data"
    channel, _, part = split.partition("-")
    return f"AISHELL-DEV-TEST-SET/{CHANNELS[channel]}/{part}"


def entries2(settings: Aishell2, places: Places, split: str, left_out: list[str]) -> Iterator[Entry]:
    """Yield the utterances of a split of AISHELL-2, by name; all but `train` must be complete."""
    folder = places(folder_of(split))
    transcripts, recordings = read_transcripts(folder / "trans.txt", BAD), _recordings(folder)
    names = transcripts.keys() | recordings.keys()
    missing = [f"{name}: no transcript" for name in sorted(names - transcripts.keys())]
    missing += [f"{name}: no recording" for name in sorted(names - recordings.keys())]
    if missing and split != "train":
        raise ArchiveError(f"{folder}: trans.txt and recordings differ: {', '.join(missing[:5])}")
    _check_few(missing, len(names), str(folder))
    left_out += missing
    for name in sorted(transcripts.keys() & recordings.keys()):
        path = recordings[name]
        speaker = Path(path).parent.name or "unknown"
        yield Entry(name, f"{folder_of(split)}/{path}", "zh", speaker, transcripts[name])


def _check_few(missing: list[str], total: int, place: str) -> None:
    if len(missing) > INCOMPLETE * total:
        raise ArchiveError(
            f"{place}: {len(missing)} of {total} utterances are incomplete, such as {missing[0]}"
        )


def _recordings(folder: Path) -> dict[str, str]:
    """Return the utterances and the paths of their recordings in the folder."""
    listed = folder / "wav.scp"
    if not listed.is_file():
        found = sorted(path for path in (folder / "wav").rglob("*.wav") if not hidden(path.name))
        return {path.stem: path.relative_to(folder).as_posix() for path in found}
    paths = {}
    for number, line in tables.read_lines(listed):
        name, _, path = line.partition("\t")
        if not path.strip() or Path(path).is_absolute() or ".." in Path(path).parts:
            raise ArchiveError(f"{listed}, line {number}: found {line!r:.80}, expected `utterance<tab>path`")
        if (folder / path.strip()).is_file():
            paths[name] = path.strip()
    return paths


def sources2(settings: Aishell2) -> list[Source]:
    """Return the folders of the splits in use."""
    return [Source(folder_of(split), folder_of(split)) for split in settings.used]


AISHELL1 = ManifestReader("aishell1", Aishell1.SPLITS, card("aishell1"), lambda settings: [ARCHIVE], entries1)
AISHELL2 = ManifestReader("aishell2", Aishell2.SPLITS, card("aishell2"), sources2, entries2)
