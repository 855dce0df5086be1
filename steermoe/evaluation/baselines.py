"""Baselines without training, and ablations of a system's input.

Baselines: `constant` answers all rows of a task with one text, `text_only` with the frozen LLM's answer to the prompt
alone, `cascade` with its answer to a transcript. Ablations (AUDIO, VIDEO) replace the audio or video of each row.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import jiwer
import numpy as np
import polars as pl
import torch

from steermoe.audio import io as waveform
from steermoe.config import Evaluation, Generation
from steermoe.data import video
from steermoe.data.prompts import encode_prompt, prompt_texts
from steermoe.data.tokens import encode, plain
from steermoe.evaluation.decoders import OwnDecoder
from steermoe.evaluation.metrics import edits
from steermoe.evaluation.normalizers import Normalizer, normalizer
from steermoe.evaluation.predictions import System, batchwise
from steermoe.models.generation import answer_texts, describe
from steermoe.models.steermoe import SteerMoE

CANDIDATES = 200  # texts that are tried as the constant
JUDGES = 500  # texts that they are tried against


def constant(train: pl.DataFrame, test: pl.DataFrame, settings: Evaluation, seed: int) -> System:
    """Answer every row of a task with one text: the most frequent answer, or the `template_guess` for other tasks.

    `train` and `test` need the columns task and target. If no training row has a task, its text comes from the test
    rows themselves (the highest such baseline), and the protocol says so.
    """
    chosen: dict[str, tuple[str, str]] = {}
    for task in test["task"].unique(maintain_order=True):
        name, rows = "training rows", train.filter(task=task)
        if rows.is_empty():
            name, rows = "evaluated rows themselves", test.filter(task=task)
        choose = most_frequent if task == "answer" else template_guess
        text = choose(rows["target"].to_list(), normalizer(settings.normalizer), seed)
        chosen[task] = text, name
    described = "; ".join(f"{task}: {text!r}, chosen on the {name}" for task, (text, name) in chosen.items())

    def respond(rows: pl.DataFrame) -> list[str]:
        return [chosen[task][0] for task in rows["task"]]

    return System(batchwise(respond), f"one text for all rows ({described})", "none")


def most_frequent(texts: Sequence[str], normalize: Normalizer, seed: int) -> str:
    """Return the text that is most frequent after normalisation, in its first spelling; the earlier wins a tie."""
    spelled: dict[str, str] = {}
    for text in texts:
        spelled.setdefault(normalize(text), text)
    (commonest, _), *_ = Counter(normalize(text) for text in texts).most_common(1)
    return spelled[commonest]


def template_guess(texts: Sequence[str], normalize: Normalizer, seed: int) -> str:
    """Return the text with the fewest word errors as an answer to all: the words that most texts share.

    A random sample of at most CANDIDATES distinct texts is tried against a random sample of at most JUDGES.
    """
    rng = np.random.default_rng(seed)

    def sample(texts: Sequence[str], most: int) -> list[str]:
        return [texts[int(row)] for row in rng.permutation(len(texts))[:most]]

    candidates = sample(list(dict.fromkeys(texts)), CANDIDATES)
    judges = [normalize(text) for text in sample(texts, JUDGES)]

    def errors(candidate: str) -> int:
        guesses = [normalize(candidate)] * len(judges)
        return sum(edits(jiwer.process_words(judges, guesses).alignments))

    return min(candidates, key=errors)


def text_only(model: SteerMoE, generation: Generation, seed: int) -> System:
    """Answer every row with the frozen LLM's answer to the prompt alone, in the format that the adapter gets."""

    @torch.inference_mode()
    def respond(rows: pl.DataFrame) -> list[str]:
        prompts = []
        for task, question in rows.select("task", "prompt").iter_rows():
            prompt = encode_prompt(model.config.prompts, model.tokenizer, task, question)
            prompts.append(prompt.prefix + prompt.suffix)
        return answer_texts(model.llm, model.tokenizer, prompts, generation, seed)

    return System(batchwise(respond), f"{describe(generation, seed)}, no audio", str(model.device))


def cascade(model: SteerMoE, decoder: OwnDecoder, generation: Generation, seed: int) -> OwnDecoder:
    """Answer every row with the frozen LLM's answer to the decoder's transcript, which stands in the audio's place.

    Prompt format and decoding settings are those of the adapter; a space separates transcript and prompt.
    """

    @torch.inference_mode()
    def respond(rows: pl.DataFrame) -> list[str]:
        transcripts = [text for _, text in decoder.respond([rows])]
        prompts = []
        for transcript, (task, question) in zip(
            transcripts, rows.select("task", "prompt").iter_rows(), strict=True
        ):
            before, after = prompt_texts(model.config.prompts, model.tokenizer, task, question)
            prompts.append(encode(model.tokenizer, f"{before}{plain(model.tokenizer, transcript)} {after}"))
        return answer_texts(model.llm, model.tokenizer, prompts, generation, seed)

    decoding = f"{decoder.decoding}; its transcript to the LLM: {describe(generation, seed)}"
    return replace(decoder, respond=batchwise(respond), decoding=decoding)


def own_audio(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Give every row its own audio; add the column `heard`."""
    return frame.with_columns(pl.col("source_id").alias("heard"))


def shuffled_audio(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Give every row the audio of another row of its split, whatever its task; prompt and target stay.

    A split of one row has no other audio and is left out.
    """
    parts = []
    for rows in own_audio(frame, seed).partition_by("split", maintain_order=True):
        if len(rows) > 1:
            donors = rows[derangement(rows["transcript"].to_list(), seed)]
            parts.append(rows.with_columns(donors.select("audio", "sample_rate", "seconds", "heard")))
    return pl.concat(parts) if parts else own_audio(frame.clear(), seed)


def silent_audio(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Give every row silence of the length of its audio."""
    silence = [
        waveform.encode_flac(np.zeros(round(s * waveform.RATE), np.float32), waveform.RATE)
        for s in frame["seconds"]
    ]
    return frame.with_columns(pl.Series("audio", silence, pl.Binary), pl.lit("silence").alias("heard"))


def blank_video(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Give every row a black video of the length of its own."""
    black = [video.encode(np.zeros((*video.shape(data), 3), np.uint8)) for data in frame["video"]]
    return own_audio(frame, seed).with_columns(pl.Series("video", black, pl.Binary))


def derangement(transcripts: Sequence[str], seed: int) -> np.ndarray:
    """Return another row for each row, by a random permutation.

    No row gets another recording of its own words, unless more than half of the rows have the same transcript.
    """
    count = len(transcripts)
    order = np.random.default_rng(seed).permutation(count)
    rank = {text: place for place, text in enumerate(dict.fromkeys(transcripts[row] for row in order))}
    # Equal transcripts are neighbours in a circle: a rotation by the largest group's size leaves every group.
    circle = np.array(sorted(order, key=lambda row: rank[transcripts[row]]), dtype=np.int64)
    largest = max(Counter(transcripts).values(), default=0)
    donors = np.empty(count, dtype=np.int64)
    donors[circle] = np.roll(circle, -min(largest, max(1, count // 2)))
    return donors


Ablation = Callable[[pl.DataFrame, int], pl.DataFrame]
AUDIO: dict[str, Ablation] = {"own": own_audio, "shuffled": shuffled_audio}
VIDEO: dict[str, Ablation] = {
    "silent": silent_audio,
    "blank": blank_video,
}  # of models with a video tower, too
