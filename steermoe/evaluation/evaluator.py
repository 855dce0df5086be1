"""Run whole test splits through a system: a trained adapter, the encoder's own decoder, or a trivial baseline."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import torch
from rich.markup import escape
from rich.progress import track

from steermoe.audio.io import RATE
from steermoe.config import Evaluation, Generation
from steermoe.data.batching import bucketed_batches
from steermoe.data.dataset import Batch, UtteranceDataset, collate
from steermoe.data.filters import target_tokens
from steermoe.distributed import gathered, world
from steermoe.evaluation.baselines import AUDIO, VIDEO
from steermoe.evaluation.metrics import count_errors
from steermoe.evaluation.normalizers import Normalizer, normalizer
from steermoe.evaluation.predictions import CutText, Predictions, System
from steermoe.evaluation.qa import count_answers
from steermoe.models.generation import describe
from steermoe.models.steermoe import SteerMoE

ASKED = ("audio", "video", "language", "task", "prompt")  # all columns that an answer depends on


def evaluate(
    model: SteerMoE, frame: pl.DataFrame, settings: Evaluation, generation: Generation, seed: int
) -> Predictions:
    """Answer every row of `frame` with an adapter, with the row's own and with shuffled audio.

    With a video tower also with silence, and with black videos. Of audio that is longer than the encoder's window,
    only the beginning is encoded; `decoding` says for how many rows.
    """
    system = adapter(model, generation, seed)
    longest = model.encoder.max_seconds
    cut = 0 if longest is None else frame.filter(pl.col("seconds") > longest).height
    if cut:
        beginning = f"of {cut} utterances only the first {longest:g} s are encoded"
        system = replace(system, decoding=f"{system.decoding}; {beginning}")
    kinds = (*AUDIO, *(VIDEO if model.video is not None else ()))
    return measure(system, frame, settings, seed, audio=kinds)


def adapter(model: SteerMoE, generation: Generation, seed: int) -> System:
    """Return the model as a system: [prefix ; audio ; prompt] in, text out."""

    features = _Beginning(model)
    video_features = None if model.video is None else model.video.features

    def inputs(rows: pl.DataFrame) -> Batch:
        dataset = UtteranceDataset(
            rows, features, model.tokenizer, model.config.prompts, video_features=video_features
        )
        return collate([dataset[row] for row in range(len(dataset))]).to(model.device)

    @torch.inference_mode()
    def respond(batches: Iterable[pl.DataFrame]) -> Iterator[tuple[int, str]]:
        for found in model.generate_all(map(inputs, batches), generation, seed):
            text = model.tokenizer.decode(found.ids, skip_special_tokens=True).strip()
            yield found.row, CutText(text) if len(found.ids) >= generation.max_new_tokens else text

    return System(
        respond,
        describe(generation, seed),
        str(model.device),
        tokenizer=model.tokenizer,
        max_tokens=generation.max_new_tokens,
        max_seconds=model.encoder.max_seconds,
        window=model.encoder.window_seconds,
    )


class _Beginning:
    """Features of the part of a waveform (N,) at 16 kHz that fits the encoder's window."""

    def __init__(self, model: SteerMoE) -> None:
        self.features, self.channels = model.features, model.features.channels
        longest = model.encoder.max_seconds
        self.samples = None if longest is None else round(longest * RATE)

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

    `audio` names rows of AUDIO and VIDEO: a pass over all rows for each. The speed is that of the pass over own
    audio. A question that an earlier pass has answered is not answered again.
    """
    if frame.is_empty():
        raise ValueError("nothing to evaluate: no rows in the given splits")
    parts, speed, normalize = [], None, normalizer(settings.normalizer)
    frame = frame.with_columns(_texts(frame, normalize))
    answered: dict[int, str] = {}
    for kind in audio:
        rows = (AUDIO | VIDEO)[kind](frame, seed)
        # With shuffled audio many questions repeat: a transcript does not depend on the row that gets the audio.
        asked = rows.select(name for name in ASKED if name in rows.columns).hash_rows().to_list()
        new = [row for row, question in enumerate(asked) if question not in answered]
        start = time.perf_counter()
        texts = respond_to_all(system, rows[new], settings.max_batch_seconds, f"{kind} audio")
        wall = time.perf_counter() - start
        fresh = dict(zip(new, texts, strict=True))
        hypotheses = [fresh[row] if row in fresh else answered[asked[row]] for row in range(len(rows))]
        answered |= {asked[row]: text for row, text in fresh.items()}
        if kind == "own":
            encoded = float(rows["seconds"].clip(upper_bound=system.max_seconds).sum())
            speed = {
                "real_time_factor": wall / encoded, "wall_seconds": wall, "audio_seconds": encoded,
                "max_batch_seconds": settings.max_batch_seconds, "device": system.device,
                "threads": torch.get_num_threads(),
            }  # fmt: skip
        counts = count_errors(rows["target"].to_list(), hypotheses, normalize, rows["language"].to_list())
        parts.append(
            rows.select(
                "source_id", "speaker", "text", "split", "language", "task", "prompt",
                pl.lit(kind).alias("audio"), "heard", "seconds",
                pl.col("target").alias("reference"), pl.Series("hypothesis", hypotheses, pl.String),
            )
            .hstack(pl.DataFrame(counts))
            .hstack(count_answers(rows, hypotheses, normalize))
            .with_columns(_limits(system, rows, hypotheses))
        )  # fmt: skip
    return Predictions(pl.concat(parts), system.decoding, seed, speed, settings.normalizer)


def _texts(frame: pl.DataFrame, normalize: Normalizer) -> pl.Series:
    """Return the column `text` (see `Predictions`)."""
    first = (
        pl.col("transcript", "language", "source_id")
        .first()
        .over("video" if "video" in frame.columns else "audio")
    )
    texts = [
        normalize(said, tag) or f"recording {name}" for said, tag, name in frame.select(first).iter_rows()
    ]
    return pl.Series("text", texts, pl.String)


def _limits(system: System, rows: pl.DataFrame, hypotheses: Sequence[str]) -> list[pl.Series]:
    """Return the columns target_fits and cut (see `Predictions`); null for systems without a limit in tokens."""
    fits = cut = [None] * len(rows)
    if system.max_tokens is not None:
        lengths = target_tokens(system.tokenizer, rows["target"].to_list())
        fits = [tokens <= system.max_tokens for tokens in lengths]
        cut = [isinstance(text, CutText) for text in hypotheses]
    return [pl.Series("target_fits", fits, pl.Boolean), pl.Series("cut", cut, pl.Boolean)]


def respond_to_all(system: System, frame: pl.DataFrame, max_batch_seconds: float, title: str) -> list[str]:
    """Return one text for each row, in the order of the rows. Several processes share the batches."""
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
