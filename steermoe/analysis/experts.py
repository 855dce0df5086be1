"""What the experts of trained steering do: their use, how it differs between conditions, and their vectors' geometry.

Conditions of an utterance are columns of its row (split, speaker, task); that of a frame is whether it has sound.
Between the groups of a condition the Jensen-Shannon divergence of mean gates is measured (Lin 1991, in bits) and
compared with that of random groups of the same sizes: a group of few utterances diverges by chance alone.
Shapes: U utterances, K kinds of frames (heard, silent), G groups, F valid frames, N experts, D encoder width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from steermoe.analysis import plots
from steermoe.analysis.report import markdown_table, steering_section
from steermoe.atomic_io import write_bytes, write_text
from steermoe.audio import io as waveform
from steermoe.data.batching import bucketed_batches
from steermoe.data.dataset import UtteranceDataset, collate
from steermoe.evaluation.predictions import write_json
from steermoe.models.encoders.encoder import valid_frames
from steermoe.models.steering import Steering
from steermoe.models.steermoe import SteerMoE

UTTERANCES = 64  # of a sample for the comparison of variants
BATCH_SECONDS = 60.0
CONDITIONS = ("split", "speaker", "task")  # columns of an utterance
SILENCE_DB = 40.0  # below the loudest frame of its utterance
SHUFFLES = 200
SOUND, KINDS = "sound", ("heard", "silent")  # the condition of a frame, and its groups
LEGEND = "Places are layers of the encoder, counted from 0 as experts are; `post` is its output."
BY_CONDITION = (
    "Jensen-Shannon divergence (bits) of mean gates between the groups of a condition, and by chance: its mean over "
    f"{SHUFFLES} random assignments of the utterances to groups of these sizes; p is uncorrected."
)


@dataclass
class PlaceUse:
    """Sums over the valid frames of one steered place.

    Attributes:
        gates: of frames with sound and of silent ones, (U, 2, N).
        frames: the number of either, (U, 2).
        entropy, steer, residual: of gates, and squares of what is added and of what it is added to.
    """

    name: str
    gates: np.ndarray
    frames: np.ndarray
    entropy: float = 0.0
    steer: float = 0.0
    residual: float = 0.0


@dataclass
class Usage:
    """The use of the experts on the utterances `rows`, which are without audio."""

    rows: pl.DataFrame
    places: list[PlaceUse]


@torch.inference_mode()
def collect(
    model: SteerMoE, rows: pl.DataFrame, max_batch_seconds: float = BATCH_SECONDS, by_sound: bool = False
) -> Usage:
    """Observe the steering of a trained model while it encodes `rows`; `by_sound` tells silent frames apart.

    Raises:
        ValueError: the model has no steering.
    """
    steering = steering_of(model)
    dataset = UtteranceDataset(rows, model.features, model.tokenizer, model.config.prompts)
    shapes = [(str(place), (len(rows), 2, place.experts)) for place in steering.hook_points]
    used = [PlaceUse(name, np.zeros(shape), np.zeros(shape[:2], int)) for name, shape in shapes]
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    window, seconds = model.encoder.window_seconds, rows["seconds"].to_list()
    for chosen in bucketed_batches(seconds, max_batch_seconds, None, 0, window):
        batch = collate([dataset[row] for row in chosen])
        seen.clear()
        with steering.observed(lambda *observed: seen.append(observed)):
            model.encode_frames(*(batch[name].to(model.device) for name in ("features", "feature_lengths")))
        samples = [waveform.load(rows["audio"][row]) if by_sound else None for row in chosen]
        for index, hidden_BSD, gates_BSN in seen:
            place, lengths_B = used[index], model.frame_lengths(hidden_BSD.shape[1])
            valid_BS = valid_frames(lengths_B, hidden_BSD.shape[1])
            gates_FN = gates_BSN[valid_BS]
            place.entropy += float(torch.special.entr(gates_FN).sum())
            place.steer += float((gates_FN @ steering.scaled_vectors(index)).double().square().sum())
            place.residual += float(hidden_BSD[valid_BS].double().square().sum())
            for row, audio, gates_SN, valid_S in zip(chosen, samples, gates_BSN, valid_BS, strict=True):
                gates = gates_SN[valid_S].double().cpu().numpy()
                silent = np.zeros(len(gates), bool) if audio is None else _silent(audio, len(gates))
                for kind, frames in enumerate((~silent, silent)):
                    place.gates[row, kind] = gates[frames].sum(0)
                    place.frames[row, kind] = frames.sum()
    return Usage(rows.drop("audio"), used)


def steering_of(model: SteerMoE) -> Steering:
    """Return the steering of a model; ValueError where it has none."""
    if model.steering is None:
        raise ValueError(f"method {model.config.method} has no experts to analyze; steering has")
    return model.steering


def _silent(samples: np.ndarray, frames: int) -> np.ndarray:
    """Return which of the frames that share the samples evenly are silent, (frames,)."""
    parts = np.array_split(samples, frames)
    power = np.array([np.mean(np.square(part, dtype=np.float64)) if len(part) else 0.0 for part in parts])
    return power <= power.max() * 10 ** (-SILENCE_DB / 10)


def collect_all(
    models: Mapping[str, Path], frames: Sequence[pl.DataFrame], max_batch_seconds: float, seed: int
) -> dict[str, dict]:
    """Summarise models with steering {name: folder} on one seeded sample of `frames`, which are one per corpus."""
    if not frames:
        return {}
    rows = pl.concat(frames, how="diagonal")  # rows of a corpus without videos have none
    rows = rows.sample(min(UTTERANCES, len(rows)), seed=seed)
    loaded = ((name, SteerMoE.from_pretrained(folder)) for name, folder in models.items())  # one at a time
    return {name: summarise(model, collect(model, rows, max_batch_seconds)) for name, model in loaded}


def summarise(model: SteerMoE, usage: Usage) -> dict:
    """Return means as plain values.

    These are lists with an entry per place: layers (the places' names), experts (N), mean_gates (N each), entropy (of
    a frame's gates in nats), effective_experts (its exp: 1 to N), effective_load (exp of the entropy of the mean
    gates), scales, steer_to_residual (rms of what is added over rms of what it is added to); and frames, utterances.
    """
    places = usage.places
    counts = [int(place.frames.sum()) for place in places]
    gates = [place.gates.sum((0, 1)) / frames for place, frames in zip(places, counts, strict=True)]
    entropy = [place.entropy / frames for place, frames in zip(places, counts, strict=True)]
    return {
        "layers": [place.name for place in places],
        "experts": [len(each) for each in gates],
        "utterances": len(usage.rows),
        "frames": counts[0],
        "mean_gates": [each.tolist() for each in gates],
        "entropy": entropy,
        "effective_experts": [math.exp(value) for value in entropy],
        "effective_load": [
            math.exp(float(torch.special.entr(torch.from_numpy(each)).sum())) for each in gates
        ],
        "scales": steering_of(model).scales.detach().float().cpu().tolist(),
        "steer_to_residual": [math.sqrt(place.steer / place.residual) for place in places],
    }


def table(usage: Usage, conditions: Sequence[str] = CONDITIONS) -> pl.DataFrame:
    """Return mean gates by condition, group, place and expert; condition `all` is everything."""
    everything = {"all": {"all": np.ones((len(usage.rows), 2), bool)}}
    rows = []
    for condition, groups in (everything | _groups(usage, conditions)).items():
        for group, mask_UK in groups.items():
            for place in usage.places:
                [total_N], [frames] = _totals(place, mask_UK[None])
                counts = int(frames), int((place.frames * mask_UK).any(1).sum())
                means = (total_N / max(1, frames)).tolist()
                rows += [
                    (condition, group, place.name, n, mean, *counts) for n, mean in enumerate(means) if frames
                ]
    names = ["condition", "group", "place", "expert", "mean_gate", "frames", "utterances"]
    return pl.DataFrame(rows, schema=names, orient="row")


def divergences(usage: Usage, conditions: Sequence[str] = CONDITIONS, seed: int = 0) -> pl.DataFrame:
    """Return how use differs: condition, place, groups, divergence, by_chance, p.

    by_chance is the mean divergence of SHUFFLES random groups, and p the share of these and the real ones that diverge
    at least as much. Utterances are dealt into groups anew; frames of sound and silence are exchanged within them.
    """
    rng, rows = np.random.default_rng(seed), []
    for place in usage.places:
        for condition, groups in _groups(usage, conditions).items():
            masks_GUK = np.stack(list(groups.values()))
            if not _totals(place, masks_GUK)[1].all():
                continue
            real, drawn = _divergence(place, masks_GUK), []
            for _ in range(SHUFFLES):
                if condition == SOUND:
                    swapped_U = (rng.random(len(usage.rows)) < 0.5)[:, None]
                    dealt_GUK = np.where(swapped_U, masks_GUK[:, :, ::-1], masks_GUK)
                else:
                    dealt_GUK = masks_GUK[:, rng.permutation(len(usage.rows))]
                drawn.append(_divergence(place, dealt_GUK))
            # As large but for rounding counts as large: the groups may be the real ones.
            as_large = sum(each >= real - 1e-12 for each in drawn)
            figures = real, float(np.mean(drawn)), (1 + as_large) / (1 + SHUFFLES)
            rows.append((condition, place.name, len(groups), *figures))
    names = ["condition", "place", "groups", "divergence", "by_chance", "p"]
    return pl.DataFrame(rows, schema=names, orient="row")


def _groups(usage: Usage, conditions: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Return {condition: {group: which parts of its utterances, (U, 2)}} of the conditions with several groups."""
    everyone = np.ones((len(usage.rows), 1), bool)
    found = {}
    for condition in conditions:
        values = usage.rows[condition].cast(pl.String).to_numpy()
        found[condition] = {
            group: (values == group)[:, None] & [[True, True]] for group in sorted(set(values))
        }
    found[SOUND] = {name: everyone & [[kind == 0, kind == 1]] for kind, name in enumerate(KINDS)}
    return {condition: groups for condition, groups in found.items() if len(groups) > 1}


def _totals(place: PlaceUse, masks_GUK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of gates, (G, N), and the number of frames, (G,), of each group."""
    return np.einsum("guk,ukn->gn", masks_GUK, place.gates), np.einsum("guk,uk->g", masks_GUK, place.frames)


def _divergence(place: PlaceUse, masks_GUK: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence, in bits, of the mean gates of groups with equal weights."""
    totals_GN, frames_G = _totals(place, masks_GUK)
    means_GN = totals_GN[frames_G > 0] / frames_G[frames_G > 0, None]
    return float(_bits(means_GN.mean(0)) - _bits(means_GN).mean())


def _bits(shares: np.ndarray) -> np.ndarray:
    return -np.where(shares > 0, shares * np.log2(np.where(shares > 0, shares, 1)), 0).sum(-1)


def geometry(steering: Steering) -> dict[str, dict]:
    """Return each place's norms of its experts' scaled vectors, and the cosine similarity between all, (N, N)."""
    found = {}
    for index, place in enumerate(steering.hook_points):
        vectors_ND = steering.scaled_vectors(index).detach().double().cpu()
        norms_N = vectors_ND.norm(dim=1)
        unit_ND = vectors_ND / norms_N.clamp(min=1e-12)[:, None]
        found[str(place)] = {"norms": norms_N.tolist(), "similarity": (unit_ND @ unit_ND.T).tolist()}
    return found


def analyze(
    model: SteerMoE, frame: pl.DataFrame, out: Path, conditions: tuple[str, ...] | None = None, seed: int = 0
) -> list[Path]:
    """Encode `frame` and write what the experts do into `out`.

    Args:
        model: with steering.
        frame: rows of `Utterance`.
        out: the folder: gates.csv, divergences.csv, steering.json, report.md and plots.
        conditions: columns of `frame` by which use is compared; None for split, speaker and task.
        seed: of the random groups that divergences are compared with.

    Returns:
        The files, report.md first.

    Raises:
        ValueError: the model has no steering, there are no rows, or a condition is no column of theirs.
    """
    steering, wanted = steering_of(model), CONDITIONS if conditions is None else conditions
    if frame.is_empty():
        raise ValueError("no utterances to analyze")
    for name in wanted:
        if name not in frame.columns or name == "audio":
            legal = ", ".join(column for column in frame.columns if column != "audio")
            raise ValueError(f"conditions: found {name!r}; legal: {legal}")
    usage = collect(model, frame, by_sound=True)
    use, gates, differs = summarise(model, usage), table(usage, wanted), divergences(usage, wanted, seed)
    shapes = geometry(steering)
    write_bytes(out / "gates.csv", gates.write_csv().encode())
    write_bytes(out / "divergences.csv", differs.write_csv().encode())
    write_json(out / "steering.json", use | {"geometry": shapes})
    longest = frame.sort("seconds", descending=True).row(0, named=True)
    heading = f"{longest['source_id']}: {longest['transcript'][:60]}"
    timeline = list(model.gates(waveform.load(longest["audio"])).values()), longest["seconds"], heading
    pictures = plots.draw_experts(model.config.name, use, shapes, gates, differs, timeline, out)
    write_text(out / "report.md", _page(model.config.name, frame, use, differs, pictures))
    names = ["report.md", "gates.csv", "divergences.csv", "steering.json", *pictures]
    return [out / name for name in names]


def _page(
    name: str, frame: pl.DataFrame, use: dict, differs: pl.DataFrame, captions: Mapping[str, str]
) -> str:
    hours = frame["seconds"].sum() / 3600
    text = f"Encoded: {len(frame)} utterances, {hours:.2f} h, {use['frames']:,} encoder frames. {LEGEND}"
    lines = [
        f"# What the experts of {name} do",
        "",
        text,
        "",
        "## Steering",
        "",
        *steering_section({name: use}),
    ]
    figures = ("divergence", "by_chance", "p")
    body = [
        [row["condition"], row["place"], str(row["groups"]), *(f"{row[name]:.4f}" for name in figures)]
        for row in differs.iter_rows(named=True)
    ]
    lines += ["", "## By condition", "", BY_CONDITION, ""]
    lines += markdown_table(["condition", "place", "groups", *figures], body)
    for picture, caption in captions.items():
        lines += ["", f"![{caption}]({picture})", "", caption + "."]
    return "\n".join(lines) + "\n"
