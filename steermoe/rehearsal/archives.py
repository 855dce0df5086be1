"""Small archives, laid out as the official ones, of synthetic speech.

Where the official checksums are known to the reader, its files lie unpacked, as in a user's own copy; else they are
packed as published.
"""

import csv
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from steermoe.audio import io as waveform
from steermoe.audio import synthesis
from steermoe.config import Aishell2, ClothoAqa, Corpus, Fleurs, LibriSpeech, Mls, Rehearsal
from steermoe.rehearsal.texts import QUESTIONS, sentences

VARIANTS = ("adam", "anika", "benjamin")
CLOTHO_RATE = 44_100  # Hz, as the sounds of Clotho


class Speech:
    """Speaks sentences; the same calls in a fresh process give the same samples.

    Args:
        rehearsal: the seed, and how many utterances a split has.
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        self.rehearsal = rehearsal
        self.engine = synthesis.Synthesizer()
        self._texts: dict[str, Iterator[str]] = {}

    def utterances(
        self, language: str, split: str, settings: Corpus
    ) -> Iterator[tuple[int, str, np.ndarray]]:
        """Number, text and waveform (N,) at 16 kHz of each utterance of a split."""
        texts = self._texts.setdefault(language, sentences(language, self.rehearsal.seed))
        count = self.rehearsal.train if split in settings.train else self.rehearsal.others
        for number in range(count):
            text = next(texts)
            yield number, text, self.speak(text, language, number)

    def speak(self, text: str, language: str, number: int) -> np.ndarray:
        """The waveform (N,) of a text at 16 kHz; `number` chooses the voice."""
        voice = synthesis.Voice(language, VARIANTS[number % len(VARIANTS)], 160 + 10 * (number % 3), 50, 50)
        samples, _ = self.engine.speak(text, voice)
        file = io.BytesIO()
        soundfile.write(file, samples, synthesis.RATE, format="WAV", subtype="PCM_16")
        return waveform.load(file.getvalue())


def librispeech(settings: LibriSpeech, speech: Speech, out: Path) -> None:
    """LibriSpeech/<split>/<speaker>/<chapter>/ with FLAC and .trans.txt, one speaker a split."""
    for place, split in enumerate(settings.used):
        speaker, chapter, lines = 1000 + place, 20 + place, []
        folder = out / "LibriSpeech" / split / str(speaker) / str(chapter)
        folder.mkdir(parents=True)
        for number, text, samples in speech.utterances("en-us", split, settings):
            name = f"{speaker}-{chapter}-{number:04d}"
            (folder / f"{name}.flac").write_bytes(waveform.encode_flac(samples, waveform.RATE))
            lines.append(f"{name} {text.upper()}\n")
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines), encoding="utf-8")


def aishell2(settings: Aishell2, speech: Speech, out: Path) -> None:
    """iOS/data with wav.scp, and AISHELL-DEV-TEST-SET/<channel>/<split>."""
    channels = {"ios": "iOS", "android": "Android", "mic": "Mic"}
    for split in settings.used:
        channel, _, part = split.partition("-")
        folder = out / (
            "iOS/data" if split == "train" else f"AISHELL-DEV-TEST-SET/{channels[channel]}/{part}"
        )
        texts, paths = [], []
        for number, text, samples in speech.utterances("cmn", split, settings):
            speaker = f"{'C' if split == 'train' else 'D'}{number % 2:04d}"
            name = f"{'I' if split == 'train' else channels[channel][0]}{speaker}W{len(split)}{number:03d}"
            path = folder / "wav" / speaker / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, samples, waveform.RATE, subtype="PCM_16")
            texts.append(f"{name}\t{text}\n")
            paths.append(f"{name}\twav/{speaker}/{name}.wav\n")
        (folder / "trans.txt").write_text("".join(texts), encoding="utf-8")
        (folder / "wav.scp").write_text("".join(paths), encoding="utf-8")


def clothoaqa(settings: ClothoAqa, speech: Speech, out: Path) -> None:
    """audio_files.zip, and clotho_aqa_<split>.csv with three answers a question."""
    out.mkdir(parents=True)
    with zipfile.ZipFile(out / "audio_files.zip", "w") as archive:
        for split in settings.used:
            rows = []
            for number, _, samples in speech.utterances("en-us", split, settings):
                name, file = f"{split} sound {number:03d}.wav", io.BytesIO()
                repeated = np.repeat(samples, 3)[: 3 * len(samples)]  # 48 kHz, told as 44.1: a little lower
                soundfile.write(file, repeated, CLOTHO_RATE, format="WAV", subtype="PCM_16")
                archive.writestr(f"audio_files/{name}", file.getvalue())
                question, answers = QUESTIONS[number % len(QUESTIONS)]
                rows += [(name, question, answer, "yes") for answer in answers]
            with (out / f"clotho_aqa_{split}.csv").open("w", encoding="utf-8", newline="") as table:
                csv.writer(table).writerows([("file_name", "QuestionText", "answer", "confidence"), *rows])


def fleurs(settings: Fleurs, speech: Speech, out: Path) -> None:
    """data/<language>/<split>.tsv and data/<language>/audio/<split>.tar.gz."""
    for split in settings.used:
        language, _, part = split.rpartition("-")
        folder, lines = out / "data" / language, []
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / "audio" / f"{part}.tar.gz", "w:gz") as archive:
            for number, text, samples in speech.utterances(language.partition("_")[0], split, settings):
                name, file = f"{9000 + number}.wav", io.BytesIO()
                soundfile.write(file, samples, waveform.RATE, format="WAV", subtype="PCM_16")
                member = tarfile.TarInfo(f"{part}/{name}")
                member.size = len(file.getvalue())
                archive.addfile(member, io.BytesIO(file.getvalue()))
                characters = " ".join(text.lower())
                columns = (number, name, f"{text}.", text.lower(), characters, len(samples), "FEMALE")
                lines.append("\t".join(map(str, columns)) + "\n")
        (folder / f"{part}.tsv").write_text("".join(lines), encoding="utf-8")


def mls(settings: Mls, speech: Speech, out: Path) -> None:
    """mls_<language>[_opus]/<split>/ with transcripts.txt and audio/<speaker>/<book>/."""
    accents = {"english": "en-us", "german": "de", "french": "fr", "spanish": "es"}
    kind = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}[settings.encoding]
    for split in settings.used:
        language, _, part = split.rpartition("-")
        root = f"mls_{language}_opus" if settings.encoding == "opus" else f"mls_{language}"
        lines = []
        for number, text, samples in speech.utterances(accents[language], split, settings):
            name = f"{70 + number % 2}_12_{number:06d}"
            path = out / root / part / "audio" / str(70 + number % 2) / "12" / f"{name}.{settings.encoding}"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, samples, waveform.RATE, format=kind[0], subtype=kind[1])
            lines.append(f"{name}\t{text.lower()}\n")
        (out / root / part / "transcripts.txt").write_text("".join(lines), encoding="utf-8")


def make_archives(corpora: dict[str, Corpus], rehearsal: Rehearsal, out: Path) -> None:
    """Write a folder of archives for each of the corpora, to be named as its mirror.

    Raises:
        ValueError: there is no layout for a corpus.
    """
    if unknown := [name for name in corpora if name not in LAYOUTS]:
        raise ValueError(
            f"corpora.{unknown[0]}: a rehearsal makes no archives of it; legal: {', '.join(LAYOUTS)}"
        )
    speech = Speech(rehearsal)
    for name, settings in corpora.items():
        LAYOUTS[name](settings, speech, out / name)


LAYOUTS: dict[str, Callable[..., None]] = {
    "librispeech": librispeech,
    "aishell2": aishell2,
    "clothoaqa": clothoaqa,
    "fleurs": fleurs,
    "mls": mls,
}
