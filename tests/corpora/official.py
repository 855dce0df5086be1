"""Small corpora laid out as the official ones: names and contents of files. Most recordings are tones of 0.25 s.

A maker takes `sound`, which gives the bytes of a recording of so many Hz (`tone`), where the test chooses none.
"""

import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import av
import numpy as np
import polars as pl
import py7zr
import soundfile

Files = dict[str, bytes]
Sound = Callable[..., bytes]

AISHELL_SPEAKERS = {"S0002": "train", "S0724": "dev", "S0764": "test"}
AISHELL_TRANSCRIPT = "data_aishell/transcript/aishell_transcript_v0.8.txt"
ASKED = {  # file, question: answers
    ("a.wav", "Is it loud?"): ("yes", "Yes", "yes"),
    ("a.wav", "Is it near?"): ("no", "yes", "No "),
    ("a.wav", "What rings?"): ("bell", "Phone", "Bell"),
    ("b.wav", "What rings?"): ("church bell", "church bell", "church bell"),
    ("b.wav", "Where is it?"): ("street", "park", "indoors"),
}


def tone(hertz: int, rate: int = 16_000, format: str = "WAV", subtype: str | None = None) -> bytes:
    """0.25 s of a tone."""
    sound = 0.3 * np.sin(2 * np.pi * hertz * np.arange(rate // 4) / rate)
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=format, subtype=subtype)
    return file.getvalue()


def g722(hertz: int, seconds: float = 0.5) -> bytes:
    """A tone in headerless G.722 at 16 kHz."""
    sound = 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(16_000 * seconds)) / 16_000)
    file = io.BytesIO()
    with av.open(file, "w", format="g722") as output:
        stream: Any = output.add_stream("g722", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            (sound * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = 16_000
        output.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    """A .tar.gz of these files; the same ones give the same bytes."""
    data = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=data, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A .zip of these files."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def seven_zipped(files: Mapping[str, bytes]) -> bytes:
    """A .7z of these files."""
    data = io.BytesIO()
    with py7zr.SevenZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(content, name)
    return data.getvalue()


def debian(data: bytes) -> bytes:
    """A Debian package whose member data.tar.xz is `data`."""
    members = {b"debian-binary": b"2.0\n", b"control.tar.xz": lzma.compress(b"odd"), b"data.tar.xz": data}
    package = b"!<arch>\n"
    for name, content in members.items():
        header = name.ljust(16) + b"0".ljust(12) + b"0".ljust(6) * 2 + b"100644".ljust(8)
        package += (
            header + str(len(content)).encode().ljust(10) + b"`\n" + content + b"\n" * (len(content) % 2)
        )
    return package


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A csv."""
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    return text.getvalue()


def librispeech(split: str, speech: Mapping[str, tuple[str, bytes]]) -> Files:
    """What the archive of a split holds; `speech` is the words and the FLAC file of every utterance."""
    files: Files = {"LibriSpeech/README.TXT": b"LibriSpeech", "LibriSpeech/SPEAKERS.TXT": b";"}
    for name, (words, flac) in speech.items():
        speaker, chapter, _ = name.split("-")
        folder = f"LibriSpeech/{split}/{speaker}/{chapter}"
        files[f"{folder}/{name}.flac"] = flac
        listed = f"{folder}/{speaker}-{chapter}.trans.txt"
        files[listed] = files.get(listed, b"") + f"{name} {words}\n".encode()
    return files


def aishell1_utterances() -> dict[str, int]:
    """Names and pitches."""
    names = [f"BAC009{speaker}W{number:04d}" for speaker in AISHELL_SPEAKERS for number in range(121, 124)]
    return {name: 500 + 100 * number for number, name in enumerate(names)}


def aishell1(sound: Sound = tone) -> Files:
    """What the archive holds: a speaker an archive, and the transcripts, with full-width letters."""
    said = aishell1_utterances()
    files = {}
    for speaker, split in AISHELL_SPEAKERS.items():
        recordings = {
            f"{split}/{speaker}/{name}.wav": sound(hertz) for name, hertz in said.items() if speaker in name
        }
        files[f"data_aishell/wav/{speaker}.tar.gz"] = tarred(recordings)
    lines = [f"{name} 音高 {hertz} \uff34 \uff56" for name, hertz in said.items()]
    return files | {AISHELL_TRANSCRIPT: "\n".join(lines).encode()}


def aishell2(sound: Sound = tone) -> Files:
    """A folder with splits train and ios-test."""
    test, train = "AISHELL-DEV-TEST-SET/iOS/test", "iOS/data"
    return {
        f"{test}/wav/T0011/IT0011W0001.wav": sound(500),
        f"{test}/wav/T0012/IT0012W0002.wav": sound(600),
        f"{test}/trans.txt": "IT0011W0001\t换一首歌\nIT0012W0002\t打开 \uff54\uff56\n".encode(),
        f"{train}/wav/C0001/IC0001W0001.wav": sound(700),
        f"{train}/wav.scp": b"IC0001W0001\twav/C0001/IC0001W0001.wav\n",
        f"{train}/trans.txt": "IC0001W0001\t厨房用品\n".encode(),
    }


def fleurs(language: str, split: str, sound: Sound = tone) -> Files:
    """The files of a split on the hub: quotes stand in the table as they are."""
    rows = (
        '7\t11.wav\tEr sagte: "Ja, Straße 500!"\ter sagte ja straße 500\te r |\t4000\tMALE\n'
        "7\t12.wav\tZweite 600.\tzweite 600\tz w |\t4000\tFEMALE\n"
    )
    archive = tarred({f"{split}/11.wav": sound(500), f"{split}/12.wav": sound(600)})
    return {
        f"data/{language}/{split}.tsv": rows.encode(),
        f"data/{language}/audio/{split}.tar.gz": archive,
    }


def mls(language: str, encoding: str, sound: Sound = tone) -> Files:
    """What the archive of a language holds, of splits dev and test, under its first folder's name."""
    root = f"mls_{language}_opus" if encoding == "opus" else f"mls_{language}"
    kind = {"format": "OGG", "subtype": "OPUS"} if encoding == "opus" else {"format": "FLAC"}
    files = {f"{root}/metainfo.txt": b""}
    for part in ("dev", "test"):
        said = {f"10536_10278_00000{number}": 500 + 100 * number for number in range(2)}
        for name, hertz in said.items():
            files[f"{root}/{part}/audio/10536/10278/{name}.{encoding}"] = sound(hertz, **kind)
        lines = [f"{name}\ttonhöhe {hertz}\n" for name, hertz in said.items()]
        files[f"{root}/{part}/transcripts.txt"] = "".join(lines).encode()
    return files


def prompts(lines: Mapping[str, str], language: str = "en") -> Files:
    """A language of the telephone prompts; the tone of a recording is 500 Hz and 100 more for each one before it."""
    files = {f"{name}.g722": g722(500 + 100 * number) for number, name in enumerate(lines)}
    told = "".join(f"{name}: {text}\n" for name, text in lines.items())
    return files | {f"core-sounds-{language}.txt": f"\ufeff; Core Sounds\n\n{told}".encode()}


def clothoaqa(asked: Mapping[tuple[str, str], Sequence[str]] = ASKED) -> bytes:
    """The table of a split."""
    rows = [(*question, answer, "yes") for question, answers in asked.items() for answer in answers]
    return table(["file_name", "QuestionText", "answer", "confidence"], rows).encode()


def clotho(names: Sequence[str]) -> bytes:
    """The captions of a split: five a sound."""
    columns = ["file_name", *(f"caption_{i}" for i in range(1, 6))]
    return table(columns, [[f"{n}.wav", *(f"{n}, said {i}." for i in range(1, 6))] for n in names]).encode()


def mmau(*more: Mapping[str, Any], **changed: Any) -> bytes:
    """A question of test-mini, and `more` by what differs from it."""
    first = {
        "id": "3fe64f3d",
        "audio_id": "./test-mini-audios/3fe64f3d.wav",
        "question": "Who speaks?",
        "choices": ["Man", "Woman", "Child"],
        "answer": "Woman",
        "task": "sound",
    }
    first |= changed
    return json.dumps([first, *({**first, **other} for other in more)]).encode()


def mmaupro(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The questions, each told by what differs from one of a man or a dog."""
    one = {"id": "q1", "audio_path": ["data/a.wav"], "question": "Who?", "choices": ["Man", "Dog"]}
    data = io.BytesIO()
    pl.DataFrame([{**one, **row} for row in rows]).write_parquet(data)
    return data.getvalue()


def openaudiobench(subset: str, answer: str, recording: bytes) -> Files:
    """A subset of one question, its columns named as that subset names them."""
    from steermoe.corpora.openaudiobench import COLUMNS

    columns = COLUMNS[subset]
    rows = table(["audio_filename", columns.question, columns.answer], [["x.mp3", "Who, or what?", answer]])
    folder = f"eval_datas/{subset}"
    return {f"{folder}/{subset}.csv": rows.encode(), f"{folder}/audios/x.mp3": recording}
