"""What experts specialise in: their gates per utterance, compared between conditions, and their vectors' geometry.

Conditions of an utterance are columns of its row (split, speaker, task); of a frame, whether something is heard in
it. The divergence between the groups of a condition is the Jensen-Shannon divergence of their mean gates (Lin 1991,
in bits: 0 where all use the experts alike, at most log2 of the number of groups), beside what it is when the
utterances are dealt into groups at random: a group of few utterances diverges by chance alone.
Shapes: U utterances, S frames, N experts of a place, D encoder width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from rich.progress import track

from steermoe.audio import io as waveform
from steermoe.models.steering import Steering
from steermoe.models.steermoe import SteerMoE

CONDITIONS = ("split", "speaker", "task")  # columns of an utterance
SILENCE_DB = 40.0  # below the loudest frame of its utterance
SHUFFLES = 200
SOUND = "sound"  # the condition of a frame: heard or silent


@dataclass(frozen=True)
class Usage:
    """The gates of every utterance.

    Attributes:
        rows: the utterances, without their audio.
        places: names of the steered places.
        gates: a place each: sums of gates over frames, (U, 2, N): of the frames with sound, and of the silent ones.
        frames: how many frames of either kind, a place each, (U, 2).
    """

    rows: pl.DataFrame
    places: list[str]
    gates: list[np.ndarray]
    frames: list[np.ndarray]


@torch.inference_mode()
def usage(model: SteerMoE, frame: pl.DataFrame) -> Usage:
    """Listen to every utterance of `frame`, one by one.

    Raises:
        ValueError: the model has no steering.
    """
    if model.steering is None:
        raise ValueError(f"method {model.config.method} has no experts to analyze; steering has")
    places = model.steering.hook_points
    gates = [np.zeros((len(frame), 2, place.experts)) for place in places]
    frames = [np.zeros((len(frame), 2), int) for _ in places]
    audio = frame["audio"]
    for number in track(range(len(frame)), description="gates"):
        samples = waveform.load(audio[number])
        for place, gates_SN in enumerate(model.gates(samples).values()):
            silent_S = _silent(samples, len(gates_SN))
            for kind, chosen in enumerate((~silent_S, silent_S)):
                gates[place][number, kind] = gates_SN[chosen].sum(0)
                frames[place][number, kind] = chosen.sum()
    return Usage(frame.drop("audio"), [str(place) for place in places], gates, frames)


def _silent(samples: np.ndarray, frames: int) -> np.ndarray:
    """Which of the frames that share the samples evenly are silent, (S,)."""
    parts = np.array_split(samples, frames)
    power = np.array([np.mean(np.square(part, dtype=np.float64)) if len(part) else 0.0 for part in parts])
    return power <= power.max() * 10 ** (-SILENCE_DB / 10)


def table(used: Usage, conditions: Sequence[str] = CONDITIONS) -> pl.DataFrame:
    """Mean gates: condition, group, place, expert, mean_gate, frames, utterances; condition `all` is everything."""
    rows = []
    for condition, group, members, kinds in _groups(used, conditions):
        for place, gates, frames in zip(used.places, used.gates, used.frames, strict=True):
            count = int(frames[members][:, kinds].sum())
            if not count:
                continue
            mean_N = gates[members][:, kinds].sum((0, 1)) / count
            heard = int((frames[members][:, kinds].sum(1) > 0).sum())
            for expert, gate in enumerate(mean_N):
                rows.append((condition, group, place, expert, float(gate), count, heard))
    names = ["condition", "group", "place", "expert", "mean_gate", "frames", "utterances"]
    return pl.DataFrame(rows, schema=names, orient="row")


def _groups(used: Usage, conditions: Sequence[str]) -> list[tuple[str, str, np.ndarray, list[int]]]:
    """(condition, group, which utterances, which kinds of frames)."""
    everyone = np.arange(len(used.rows))
    found = [("all", "all", everyone, [0, 1])]
    found += [(SOUND, "heard", everyone, [0]), (SOUND, "silent", everyone, [1])]
    for condition in conditions:
        values = used.rows[condition].cast(pl.String).to_numpy()
        groups = sorted(set(values))
        if len(groups) > 1:
            found += [(condition, group, np.flatnonzero(values == group), [0, 1]) for group in groups]
    return found


def divergences(used: Usage, conditions: Sequence[str] = CONDITIONS, seed: int = 0) -> pl.DataFrame:
    """How use differs: condition, place, groups, divergence, by_chance, p.

    by_chance is the mean divergence over SHUFFLES random dealings of the utterances into groups of the same sizes,
    and p the share of dealings (with the real one) that diverge at least as much; frames of sound and silence are
    exchanged within an utterance.
    """
    rng = np.random.default_rng(seed)
    rows = []
    by_condition: dict[str, list[np.ndarray]] = {}
    for condition, _, members, _ in _groups(used, conditions):
        if condition not in ("all", SOUND):
            by_condition.setdefault(condition, []).append(members)
    for place, gates, frames in zip(used.places, used.gates, used.frames, strict=True):
        totals, counts = gates.sum(1), frames.sum(1)
        for condition, groups in by_condition.items():
            real = _divergence([totals[g].sum(0) for g in groups], [counts[g].sum() for g in groups])
            dealt = []
            for _ in range(SHUFFLES):
                order = rng.permutation(np.concatenate(groups))
                shuffled = np.split(order, np.cumsum([len(g) for g in groups])[:-1])
                dealt.append(
                    _divergence([totals[g].sum(0) for g in shuffled], [counts[g].sum() for g in shuffled])
                )
            rows.append((condition, place, len(groups), real, *_against(real, dealt)))
        if (frames.sum(0) > 0).all():
            real = _divergence(list(gates.sum(0)), list(frames.sum(0)))
            dealt = []
            for _ in range(SHUFFLES):
                swap = rng.random(len(gates)) < 0.5
                turned, sizes = (np.where(swap[:, None, None], gates[:, ::-1], gates).sum(0),
                                 np.where(swap[:, None], frames[:, ::-1], frames).sum(0))  # fmt: skip
                dealt.append(_divergence(list(turned), list(sizes)))
            rows.append((SOUND, place, 2, real, *_against(real, dealt)))
    return pl.DataFrame(
        rows, schema=["condition", "place", "groups", "divergence", "by_chance", "p"], orient="row"
    )


def _against(real: float, dealt: list[float]) -> tuple[float, float]:
    # As large but for rounding counts as large: a dealing may be the real one.
    return float(np.mean(dealt)), (1 + sum(each >= real - 1e-12 for each in dealt)) / (1 + len(dealt))


def _divergence(totals: Sequence[np.ndarray], counts: Sequence[int]) -> float:
    """Jensen-Shannon divergence, in bits, of the mean gates of groups with equal weights."""
    means = np.array([total / count for total, count in zip(totals, counts, strict=True) if count])
    entropy = -np.where(means > 0, means * np.log2(np.where(means > 0, means, 1)), 0).sum(1)
    middle = means.mean(0)
    return float(-(middle[middle > 0] * np.log2(middle[middle > 0])).sum() - entropy.mean())


def geometry(steering: Steering) -> dict[str, dict]:
    """Of each place: norm of each expert's scaled vector, and cosine similarity between all, (N, N)."""
    found = {}
    for index, place in enumerate(steering.hook_points):
        vectors_ND = steering.scaled_vectors(index).detach().double().cpu()
        norms_N = vectors_ND.norm(dim=1)
        unit_ND = vectors_ND / norms_N.clamp(min=1e-12)[:, None]
        found[str(place)] = {"norms": norms_N.tolist(), "similarity": (unit_ND @ unit_ND.T).tolist()}
    return found
