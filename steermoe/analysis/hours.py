"""Hours of audio in the splits of corpora, and bytes of their archives, as published.

A split that is not listed counts with what the corpus' card says of the whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steermoe.config import Corpus, LibriSpeech, Mls
from steermoe.corpora import reader
from steermoe.corpora.librispeech import ARCHIVES

CLIP_SECONDS = 10.0  # of a corpus whose number of utterances is not listed
GB = 1e9


@dataclass(frozen=True)
class Audio:
    """What a split has.

    Attributes:
        hours: of audio that an epoch hears; a recording counts once a question about it.
        clips: utterances; None where that is not known.
        target_tokens: of a clip, about.
    """

    hours: float
    clips: int | None
    target_tokens: int = 40


# Panayotov et al. 2015, table 1, and the utterances of the archives; Clotho-AQA: a third of the csv's 21,132 answers,
# at Clotho's 22.5 s.
SPLITS: dict[tuple[str, str], Audio] = {
    ("librispeech", "train-clean-100"): Audio(100.6, 28_539),
    ("librispeech", "train-clean-360"): Audio(363.6, 104_014),
    ("librispeech", "train-other-500"): Audio(496.7, 148_688),
    ("clothoaqa", "train"): Audio(7_044 * 22.5 / 3600, 7_044, 3),
}
LIBRISPEECH = {split: float(size) for split, (size, _) in ARCHIVES.items()}
MLS = {  # an archive holds all splits of a language
    "flac": {"german": 115 * GB, "french": 61 * GB, "spanish": 50 * GB},
    "opus": {"german": 29 * GB, "french": 16 * GB, "spanish": 14 * GB},
}


def heard(splits: Mapping[str, Sequence[str]]) -> Audio:
    """What splits have together, `{corpus: [split]}`.

    Raises:
        ValueError: nothing is published of a corpus.
    """
    found = [_split(corpus, split) for corpus, named in splits.items() for split in named]
    hours = sum(audio.hours for audio in found)
    clips = sum(audio.clips or round(audio.hours * 3600 / CLIP_SECONDS) for audio in found)
    return Audio(hours, clips, round(sum(audio.target_tokens * audio.hours for audio in found) / hours))


def _split(corpus: str, split: str) -> Audio:
    if (corpus, split) in SPLITS:
        return SPLITS[corpus, split]
    card = reader(corpus).CARD
    if card.hours is None:
        raise ValueError(
            f"corpora.{corpus}: no hours of {split!r} are published; give --hours and --epochs instead of --profile"
        )
    return Audio(card.hours, None)


def download(corpus: str, settings: Corpus) -> float | None:
    """Bytes of the archives of the splits in use; None where no size is published."""
    if isinstance(settings, LibriSpeech):
        return sum(LIBRISPEECH[split] for split in settings.used)
    if isinstance(settings, Mls):
        languages = {split.rpartition("-")[0] for split in settings.used}
        sizes = [MLS[settings.encoding].get(language) for language in languages]
        return None if None in sizes else sum(size or 0.0 for size in sizes)
    size = reader(corpus).CARD.bytes
    return None if size is None else float(size)
