"""Whole test splits through a system.

A system is anything that answers rows of utterances with texts: a trained adapter, the encoder's own decoder,
a floor that never listens. All run through the same loop, so that their rows and times can be compared.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.markup import escape
from rich.progress import track

from steermoe.audio.features import Features
from steermoe.audio.io import RATE
from steermoe.config import Evaluation, Generation
from steermoe.data.batching import bucketed_batches
from steermoe.data.dataset import Batch, UtteranceDataset, collate
from steermoe.data.limits import target_tokens
from steermoe.data.rows import with_defaults
from steermoe.distributed import gathered, world
from steermoe.evaluation.answers import count_answers
from steermoe.evaluation.controls import AUDIO, VIDEO
from steermoe.evaluation.metrics import count_errors
from steermoe.evaluation.normalizers import normalizer
from steermoe.evaluation.predictions import Predictions, Speed
from steermoe.models.generation import describe
from steermoe.models.steermoe import SteerMoE

ASKED = ("audio", "video", "language", "task", "prompt")  # all that an answer depends on
Respond = Callable[[Iterable[pl.DataFrame]], Iterator[tuple[int, str]]]
"""Utterance rows in batches -> number of the row, counted through all batches, and text, in any order."""


@dataclass(frozen=True)
class System:
    """What is evaluated. `decoding` and `device` tell the reader of the report how its texts came about.

    Attributes:
        room: the LLM's tokenizer and the most tokens of an answer; None where that is no limit, or not known.
        seconds: of longer audio only so much is encoded; None: all of it.
        window: seconds that every utterance is padded to (`Encoder.window_seconds`).
    """

    respond: Respond
    decoding: str
    device: str
    room: tuple[Any, int] | None = field(default=None, kw_only=True)
    seconds: float | None = field(default=None, kw_only=True)
    window: float = field(default=0.0, kw_only=True)


class CutText(str):
    """An answer that did not end by itself, but at the most tokens allowed."""


def evaluate(
    model: SteerMoE, frame: pl.DataFrame, settings: Evaluation, generation: Generation, seed: int
) -> Predictions:
    """Answers of a trained adapter to every row of `frame`, with their own and with shuffled audio.

    Where it has a video branch: also with silence, and with black videos.

    Of audio that is longer than the encoder takes, its beginning is heard; `decoding` tells of how many rows.
    """
    system = adapter(model, generation, seed)
    longest = model.encoder.max_seconds
    cut = 0 if longest is None else frame.filter(pl.col("seconds") > longest).height
    if cut:
        system = replace(
            system, decoding=f"{system.decoding}; of {cut} utterances the first {longest:g} s are heard"
        )
    kinds = (*AUDIO, *(VIDEO if model.video is not None else ()))
    return measure(system, frame, settings, seed, audio=kinds)


def adapter(model: SteerMoE, generation: Generation, seed: int) -> System:
    """The model as a system: [prefix ; audio ; prompt] in, text out."""

    features = _Beginning(model.features, model.encoder.max_seconds)
    seen = None if model.video is None else model.video.features

    def inputs(rows: pl.DataFrame) -> Batch:
        dataset = UtteranceDataset(rows, features, model.tokenizer, model.config.prompts, video_features=seen)
        return collate([dataset[row] for row in range(len(dataset))]).to(model.device)

    @torch.inference_mode()
    def respond(batches: Iterable[pl.DataFrame]) -> Iterator[tuple[int, str]]:
        for found in model.generate_all(map(inputs, batches), generation, seed):
            text = model.tokenizer.decode(found.ids, skip_special_tokens=True).strip()
            yield found.row, CutText(text) if len(found.ids) >= generation.max_new_tokens else text

    room = (model.tokenizer, generation.max_new_tokens)
    seconds, window = model.encoder.max_seconds, model.encoder.window_seconds
    decoding, device = describe(generation, seed), str(model.device)
    return System(respond, decoding, device, room=room, seconds=seconds, window=window)


class _Beginning:
    """Features of what comes within `seconds` of a waveform (N,) at 16 kHz; None: of all of it."""

    def __init__(self, features: Features, seconds: float | None) -> None:
        self.features, self.channels = features, features.channels
        self.samples = None if seconds is None else round(seconds * RATE)

    def __call__(self, waveform: np.ndarray | torch.Tensor) -> torch.Tensor:
        return self.features(waveform[: self.samples])


def measure(
    system: System,
    frame: pl.DataFrame,
    settings: Evaluation,
    seed: int,
    audio: Sequence[str] = ("own",),
) -> Predictions:
    """Run `system` over all rows of `frame` (columns of `Utterance`) in batches sorted by length.

    `audio` names rows of AUDIO and VIDEO: what the system hears and sees. The speed is that of the pass over own
    audio; what is asked again in another pass is not answered again.
    """
    if frame.is_empty():
        raise ValueError("nothing to evaluate: no rows in the given splits")
    parts, speed = [], None
    frame, normalize = with_defaults(frame), normalizer(settings.normalizer)
    same = "video" if "video" in frame.columns else "audio"
    frame = frame.with_columns(pl.col("source_id").first().over(same).alias("recording"))
    answered: dict[int, str] = {}
    for kind in audio:
        heard = (AUDIO | VIDEO)[kind](frame, seed)
        # A control asks much that was asked before: a transcript does not depend on whose row hears the audio.
        asked = heard.select(name for name in ASKED if name in heard.columns).hash_rows().to_list()
        new = [row for row, question in enumerate(asked) if question not in answered]
        start = time.perf_counter()
        texts = respond_to_all(system, heard[new], settings.max_batch_seconds, f"{kind} audio")
        wall = time.perf_counter() - start
        fresh = dict(zip(new, texts, strict=True))
        hypotheses = [fresh[row] if row in fresh else answered[asked[row]] for row in range(len(heard))]
        answered |= {asked[row]: text for row, text in fresh.items()}
        if kind == "own":
            total = float(heard["seconds"].clip(upper_bound=system.seconds).sum())
            threads = torch.get_num_threads()
            speed = Speed(wall, total, settings.max_batch_seconds, system.device, threads)
        languages = heard["language"].to_list()
        counts = count_errors(heard["target"].to_list(), hypotheses, normalize, languages)
        parts.append(
            heard.select(
                "source_id", "speaker", "recording", "split", "language", "task", "prompt",
                pl.lit(kind).alias("audio"), "heard", "seconds",
                pl.col("target").alias("reference"), pl.Series("hypothesis", hypotheses, pl.String),
            )
            .hstack(pl.DataFrame(counts))
            .hstack(count_answers(heard, hypotheses, normalize))
            .with_columns(_ends(system, heard, hypotheses))
        )  # fmt: skip
    return Predictions(pl.concat(parts), system.decoding, seed, speed, settings.normalizer)


def _ends(system: System, heard: pl.DataFrame, hypotheses: Sequence[str]) -> list[pl.Series]:
    """Columns target_fits and cut (see `Predictions`); null where the system says nothing about its limit."""
    fits = cut = [None] * len(heard)
    if system.room is not None:
        tokenizer, most = system.room
        fits = [tokens <= most for tokens in target_tokens(tokenizer, heard["target"].to_list())]
        cut = [isinstance(text, CutText) for text in hypotheses]
    return [pl.Series("target_fits", fits, pl.Boolean), pl.Series("cut", cut, pl.Boolean)]


def batchwise(respond: Callable[[pl.DataFrame], Sequence[str]]) -> Respond:
    """What answers one batch after the other, all rows of a batch together."""

    def respond_to_batches(batches: Iterable[pl.DataFrame]) -> Iterator[tuple[int, str]]:
        before = 0
        for rows in batches:
            yield from enumerate(respond(rows), start=before)
            before += len(rows)

    return respond_to_batches


def respond_to_all(system: System, frame: pl.DataFrame, max_batch_seconds: float, title: str) -> list[str]:
    """One text a row, in the order of the rows, whatever the batches were.

    Several processes take turns at the batches, and each gets the texts of all.
    """
    if frame.is_empty():
        return []
    batches = bucketed_batches(frame["seconds"].to_list(), max_batch_seconds, None, 0, system.window)
    own = batches[world().rank :: world().size]
    rows = [row for batch in own for row in batch]
    answers = system.respond(frame[batch] for batch in own)
    answers = track(answers, escape(title), total=len(rows), disable=world().rank > 0)
    texts = gathered({rows[number]: text for number, text in answers})
    if len(texts) != len(frame):
        raise RuntimeError(f"{title}: {len(texts)} texts for {len(frame)} rows; a process left some out")
    return [texts[row] for row in range(len(frame))]
