"""What a system wrote for every utterance, and the metrics of it with intervals and protocol."""

from dataclasses import asdict, dataclass

import polars as pl

from steermoe.config import Evaluation
from steermoe.evaluation.metrics import metrics_of
from steermoe.evaluation.significance import bootstrap_interval


@dataclass(frozen=True)
class Speed:
    """Wall time of a pass over all rows: decoding of audio, features, forward passes, detokenising."""

    wall_seconds: float
    audio_seconds: float
    batch_seconds: float
    device: str
    threads: int

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing for a second of audio; below 1 is faster than real time."""
        return self.wall_seconds / self.audio_seconds


@dataclass(frozen=True)
class Predictions:
    """`frame` has a row for each utterance and kind of audio, in the order of the evaluated frame.

    Columns: source_id, split, task, prompt, audio (own | shuffled), heard (source_id of the audio that was
    fed), seconds (of that audio), reference, hypothesis, errors, words, char_errors, chars, exact.
    """

    frame: pl.DataFrame
    decoding: str
    seed: int
    speed: Speed | None


def summarise(predictions: Predictions, settings: Evaluation) -> dict:
    """Metrics with intervals for each kind of audio, split and task, and the protocol they were measured by.

    {protocol, speed, <audio>: {<split>: {<task>: {n, seconds, <metric>: {value, low, high}}}}}; rates are
    fractions, not percent.
    """
    summary: dict = {
        "protocol": {
            "normalizer": settings.normalizer,
            "decoding": predictions.decoding,
            "interval": f"{100 * settings.confidence:g} % percentile bootstrap over utterances",
            "bootstrap_samples": settings.bootstrap_samples,
            "seed": predictions.seed,
        },
        "speed": None,
    }
    if predictions.speed is not None:
        factor = predictions.speed.real_time_factor
        summary["speed"] = {"real_time_factor": factor, **asdict(predictions.speed)}
    for keys, rows in predictions.frame.group_by("audio", "split", "task", maintain_order=True):
        audio, split, task = (str(key) for key in keys)
        scores: dict = {"n": len(rows), "seconds": float(rows["seconds"].sum())}
        for name, metric in metrics_of(task).items():
            interval = bootstrap_interval(
                metric.counts(rows), settings.bootstrap_samples, settings.confidence, predictions.seed
            )
            scores[name] = asdict(interval)
        summary.setdefault(audio, {}).setdefault(split, {})[task] = scores
    return summary
