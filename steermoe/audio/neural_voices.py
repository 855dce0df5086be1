"""Synthesise speech with neural voices: Kokoro (Hexgrad 2025) and Piper (Hansen 2023), by ONNX Runtime.

The same text, voice and speed give the same samples on one kind of processor, in any order: Kokoro draws no random
numbers, and Piper's noise is switched off. A recording is made once and kept in a folder.
"""

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from steermoe.atomic_io import write_bytes
from steermoe.audio import io as waveform
from steermoe.distributed import begin_worker

ENGINE = "kokoro-82m-int8 piper-joe 1"  # changes with what decides the samples
PIPER = "piper-joe"
KOKORO_RATE = 24_000  # Hz
EDGE = 0.05  # seconds of silence that stay at both ends
SILENT = 0.01  # of the largest magnitude: what is below it at both ends is cut off
BATCH = 8  # recordings per task of a process
REPORT_SECONDS = 30.0  # between lines of progress


@dataclass(frozen=True)
class Spoken:
    """A text, the voice that says it, and how fast (1 is the voice's own speed).

    A voice is `piper-joe`, a voice of Kokoro such as `af_heart`, or two of these joined by `+`, whose style vectors
    are averaged: a voice that sounds like neither.
    """

    text: str
    voice: str
    speed: float = 1.0

    @property
    def file(self) -> str:
        """Return the name of its recording: a hash of what decides the samples."""
        key = json.dumps([ENGINE, self.text, self.voice, self.speed], ensure_ascii=False)
        return f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.flac"


class Engine:
    """Kokoro and Piper in this process, on one thread each.

    Args:
        kokoro: folder with kokoro.onnx and voices/<name>.bin, float32 style vectors (510, 1, 256).
        piper: folder with a voice, <name>.onnx and <name>.onnx.json.

    Raises:
        ImportError: kokoro-onnx is not installed.
    """

    def __init__(self, kokoro: Path, piper: Path) -> None:
        from kokoro_onnx.tokenizer import Tokenizer

        self._kokoro = _session(kokoro / "kokoro.onnx")
        self._styles = kokoro / "voices"
        self._tokenizer = Tokenizer()
        model = next(piper.glob("*.onnx"))
        settings = json.loads(model.with_suffix(".onnx.json").read_text(encoding="utf-8"))
        self._piper, self._piper_rate = _session(model), settings["audio"]["sample_rate"]
        self._piper_ids = {phoneme: ids[0] for phoneme, ids in settings["phoneme_id_map"].items()}
        self._piper_tokenizer = Tokenizer(vocab=self._piper_ids)

    def speak(self, spoken: Spoken) -> np.ndarray:
        """Return the recording (N,) at 16 kHz, with little silence at its ends.

        Raises:
            ValueError: there is no such voice, or nothing to say in the text.
        """
        raw, rate = (self._by_piper if spoken.voice == PIPER else self._by_kokoro)(spoken)
        loud = np.flatnonzero(np.abs(raw) > SILENT * np.abs(raw).max(initial=0.0))
        if not len(loud):
            raise ValueError(f"voice {spoken.voice!r} says nothing for {spoken.text!r}")
        edge = int(EDGE * rate)
        return soxr.resample(raw[max(loud[0] - edge, 0) : loud[-1] + edge], rate, waveform.RATE)

    def _by_kokoro(self, spoken: Spoken) -> tuple[np.ndarray, int]:
        british = spoken.voice.startswith("b")
        tokens = self._tokenizer.tokenize(
            self._tokenizer.phonemize(spoken.text, "en-gb" if british else "en-us")
        )
        style = np.mean([self._style(name)[len(tokens) - 1] for name in spoken.voice.split("+")], axis=0)
        inputs = {
            self._kokoro.get_inputs()[0].name: np.array([[0, *tokens, 0]], np.int64),
            "style": style,
            "speed": np.array([spoken.speed], np.float32),
        }
        return self._kokoro.run(None, inputs)[0].ravel(), KOKORO_RATE

    def _style(self, name: str) -> np.ndarray:
        path = self._styles / f"{name}.bin"
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in self._styles.glob("*.bin")))
            raise ValueError(f"unknown voice {name!r}; one of: {PIPER}, {known}")
        return np.fromfile(path, np.float32).reshape(-1, 1, 256)

    def _by_piper(self, spoken: Spoken) -> tuple[np.ndarray, int]:
        ids = self._piper_ids
        phonemes = self._piper_tokenizer.phonemize(spoken.text, "en-us")
        padded = [
            ids["^"],
            *(id for phoneme in phonemes for id in (ids["_"], ids[phoneme])),
            ids["_"],
            ids["$"],
        ]
        inputs = {
            "input": np.array([padded], np.int64),
            "input_lengths": np.array([len(padded)], np.int64),
            "scales": np.array([0, 1 / spoken.speed, 0], np.float32),  # noise, length, noise of durations
        }
        return self._piper.run(None, inputs)[0].ravel(), self._piper_rate


def record(
    spoken: Iterable[Spoken], models: tuple[Path, Path], folder: Path, workers: int | None = None
) -> int:
    """Make the recordings that `folder` lacks, in several processes; a killed run is resumed by the next one.

    Prints a line every 30 seconds.

    Args:
        spoken: what to say.
        models: the folders of Kokoro and Piper.
        folder: gets a FLAC file for each, named by `Spoken.file`.
        workers: number of processes; None: one a CPU core.

    Returns:
        how many recordings were made.
    """
    todo = list(dict.fromkeys(each for each in spoken if not (folder / each.file).exists()))
    if not todo:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    context, count = multiprocessing.get_context("spawn"), workers or len(os.sched_getaffinity(0))
    made, begun, reported = 0, time.monotonic(), time.monotonic()
    with ProcessPoolExecutor(count, context, initializer=_begin, initargs=models) as pool:
        tasks = [pool.submit(_record, todo[i : i + BATCH], folder) for i in range(0, len(todo), BATCH)]
        try:
            for done in as_completed(tasks):
                made += done.result()
                if (now := time.monotonic()) > reported + REPORT_SECONDS:
                    left, reported = (now - begun) / made * (len(todo) - made) / 60, now
                    print(f"speaking: {made} of {len(todo)} recordings, {left:.0f} minutes left", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return made


_engine: Engine  # of this process, if it is one of `record`


def _begin(kokoro: Path, piper: Path) -> None:
    global _engine
    begin_worker()
    _engine = Engine(kokoro, piper)


def _record(spoken: Iterable[Spoken], folder: Path) -> int:
    made = 0
    for made, each in enumerate(spoken, 1):  # noqa: B007
        write_bytes(folder / each.file, waveform.encode_flac(_engine.speak(each), waveform.RATE))
    return made


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
