"""What trained steering does: which experts act in which layer, how decidedly, and how much it adds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
import torch

from steermoe.data.batching import bucketed_batches
from steermoe.data.dataset import UtteranceDataset, collate
from steermoe.models.encoders.encoder import valid_frames
from steermoe.models.steering import Steering
from steermoe.models.steermoe import SteerMoE

UTTERANCES = 64  # that are looked at


class Totals:
    """Sums over valid frames of one steered layer."""

    def __init__(self, experts: int) -> None:
        self.gates = torch.zeros(experts, dtype=torch.float64)
        self.entropy = self.steer = self.residual = 0.0
        self.frames = 0

    def add(self, steering: Steering, index: int, hidden: torch.Tensor, gates: torch.Tensor) -> None:
        """Frames (F, D) of the layer's own output and their gates (F, N)."""
        steer = gates @ steering.scaled_vectors(index)
        self.gates += gates.sum(0).double().cpu()
        self.entropy += float(torch.special.entr(gates).sum())
        self.steer += float(steer.double().square().sum())
        self.residual += float(hidden.double().square().sum())
        self.frames += len(gates)


def collect_all(
    models: Mapping[str, Path], frames: Sequence[pl.DataFrame], max_batch_seconds: float, seed: int
) -> dict[str, dict]:
    """`collect` for each of several trained models, by name; `frames` are of one corpus each, none: nothing.

    Rows of a corpus without videos have none beside those of one with.
    """
    if not frames:
        return {}
    rows = pl.concat(frames, how="diagonal")
    loaded = ((name, SteerMoE.from_pretrained(folder)) for name, folder in models.items())
    found = {name: collect(model, rows, max_batch_seconds, seed) for name, model in loaded}
    return {name: use for name, use in found.items() if use is not None}


@torch.inference_mode()
def collect(
    model: SteerMoE, frame: pl.DataFrame, max_batch_seconds: float, seed: int, utterances: int = UTTERANCES
) -> dict | None:
    """Look at the steering of a trained model while it hears a seeded sample of `frame`, of `utterances` at most.

    Returns:
        None for a model without steering, else lists with an entry a steered place: layers (the places'
        names), experts (N), mean_gates (N each), entropy (of a frame's gates in nats, mean), effective_experts (exp of
        it: 1 to N), effective_load (exp of the entropy of the mean gates), scales, steer_to_residual (rms of
        what is added over rms of the layer's output); besides frames and utterances.
    """
    if model.steering is None:
        return None
    rows = frame.sample(min(utterances, len(frame)), seed=seed)
    dataset = UtteranceDataset(rows, model.features, model.tokenizer, model.config.prompts)
    steering = model.steering
    totals = [Totals(place.experts) for place in steering.hook_points]
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    with steering.observed(lambda index, hidden, gates: seen.append((index, hidden, gates))):
        window = model.encoder.window_seconds
        for chosen in bucketed_batches(rows["seconds"].to_list(), max_batch_seconds, None, 0, window):
            batch = collate([dataset[row] for row in chosen])
            features, lengths = (batch[name].to(model.device) for name in ("features", "feature_lengths"))
            model.encode_frames(features, lengths)
            for index, hidden, gates in seen:
                valid = valid_frames(model.frame_lengths(hidden.shape[1]), hidden.shape[1])
                totals[index].add(steering, index, hidden[valid], gates[valid])
            seen.clear()
    return summary(steering, totals, len(rows))


def summary(steering: Steering, totals: list[Totals], utterances: int) -> dict:
    """The means of what was collected, as plain values."""
    gates = [total.gates / total.frames for total in totals]
    entropy = [total.entropy / total.frames for total in totals]
    return {
        "layers": [str(place) for place in steering.hook_points],
        "experts": [place.experts for place in steering.hook_points],
        "utterances": utterances,
        "frames": totals[0].frames,
        "mean_gates": [each.tolist() for each in gates],
        "entropy": entropy,
        "effective_experts": [math.exp(value) for value in entropy],
        "effective_load": [math.exp(float(torch.special.entr(each).sum())) for each in gates],
        "scales": steering.scales.detach().float().cpu().tolist(),
        "steer_to_residual": [math.sqrt(total.steer / total.residual) for total in totals],
    }
