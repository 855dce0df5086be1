"""What a system wrote for every utterance, and figures of it, each with its interval and protocol."""

from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from steermoe.config import Evaluation
from steermoe.evaluation.metrics import metric, metrics_of
from steermoe.evaluation.significance import Interval, bootstrap_interval

UNUSUAL = {  # expressions over the columns of `Predictions.frame`
    "empty_references": pl.col("chars") == 0,
    "references_beyond_limit": ~pl.col("target_fits"),
    "answers_cut": pl.col("cut"),
}
MIN_SPEAKERS = 10  # a bootstrap over fewer clusters gives intervals that are too narrow
UNKNOWN = ("unknown", "none")  # what corpora call a speaker that they do not know or have


@dataclass(frozen=True)
class Speed:
    """Wall time of a pass over all rows: decoding of audio, features, forward passes, detokenising.

    `audio_seconds` are those that were encoded.
    """

    wall_seconds: float
    audio_seconds: float
    max_batch_seconds: float
    device: str
    threads: int

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing for a second of audio; below 1 is faster than real time."""
        return self.wall_seconds / self.audio_seconds


@dataclass(frozen=True)
class Protocol:
    """How a figure came about: what is counted as equal, how texts were decoded, and what its interval is.

    `min_speakers`: see `clusters`.
    """

    normalizer: str
    decoding: str
    interval: str
    bootstrap_samples: int
    min_speakers: int
    seed: int


@dataclass(frozen=True)
class Constant:
    """The best constant answer, chosen on the scored rows themselves, and what it reaches."""

    text: str
    value: float


@dataclass(frozen=True)
class Figure(Interval):
    """A metric over `n` rows: it cannot be made without its protocol. `floor` where a constant gets far."""

    metric: str
    n: int
    protocol: Protocol
    floor: Constant | None

    def to_json(self) -> dict[str, Any]:
        """Plain values but for metric and protocol, which a summary tells once."""
        plain: dict[str, Any] = {"value": self.value, "low": self.low, "high": self.high, "n": self.n}
        return plain if self.floor is None else plain | {"floor": asdict(self.floor)}


@dataclass(frozen=True)
class Predictions:
    """`frame` has a row for each utterance and kind of audio, in the order of the evaluated frame.

    Columns: source_id, speaker, recording (source_id of the first row about the same audio or, where there are videos,
    the same video), split, language, task, prompt, audio (row of controls.AUDIO or VIDEO), heard (source_id of
    the audio that was fed), seconds (of that audio), reference, hypothesis, errors, words, char_errors, chars,
    exact, those of `answers.COLUMNS`, target_fits (the reference and its end token are no longer than an answer may
    be), cut (the answer ended at that limit); both are null where the system has no limit in tokens of the LLM. All
    counts are after `normalizer`.
    """

    frame: pl.DataFrame
    decoding: str
    seed: int
    speed: Speed | None
    normalizer: str

    def protocol(self, settings: Evaluation) -> Protocol:
        """The protocol of figures of these predictions with the intervals of `settings`."""
        return Protocol(
            normalizer=self.normalizer,
            decoding=self.decoding,
            interval=f"{100 * settings.confidence:g} % percentile bootstrap over speakers (over recordings in sets of "
            f"fewer than {MIN_SPEAKERS} known speakers)",
            bootstrap_samples=settings.bootstrap_samples,
            min_speakers=MIN_SPEAKERS,
            seed=self.seed,
        )

    def figure(self, name: str, rows: pl.DataFrame, settings: Evaluation) -> Figure | None:
        """A metric over some rows of the frame; None where it says nothing about any of them, or their references
        hold no words to count errors by.

        Raises:
            ValueError: unknown metric.
        """
        wanted = metric(name)
        count, counts = wanted.rows(rows), wanted.counts(rows)
        if not counts[1].any():
            return None
        interval = bootstrap_interval(
            counts, settings.bootstrap_samples, settings.confidence, self.seed, clusters(rows)[1]
        )
        constant = wanted.constant(rows)
        return Figure(
            **asdict(interval),
            metric=name,
            n=count,
            protocol=self.protocol(settings),
            floor=None if constant is None else Constant(*constant),
        )


def clusters(rows: pl.DataFrame) -> tuple[str, list[str]]:
    """What the bootstrap over these rows draws, speakers or recordings, and the name of each row's.

    Speakers where at least MIN_SPEAKERS are known, a recording of an unknown one by itself; else recordings.
    """
    known = ~pl.col("speaker").is_in(UNKNOWN)
    if rows.filter(known)["speaker"].n_unique() < MIN_SPEAKERS:
        return "recordings", rows["recording"].to_list()
    name = pl.when(known).then(pl.format("speaker {}", "speaker")).otherwise("recording")
    return "speakers", rows.select(name.alias("name"))["name"].to_list()


def summarise(predictions: Predictions, settings: Evaluation) -> dict:
    """Metrics with intervals for each kind of audio, split and task, and the protocol they were measured by.

    {protocol, speed, <audio>: {<split>: {<task>: {n, seconds, clusters, unit, <metric>: {value, low, high, n}}}}};
    rates are fractions, not percent. The bootstrap of a set draws from so many `clusters`, which are its `unit`. A
    metric that says nothing about a set is left out; `n` of a metric is the rows that it is about; `floor` beside it
    is the best constant answer. The protocol also has `texts` (see `remarks`).
    """
    protocol = asdict(predictions.protocol(settings)) | {"texts": _texts(predictions.frame)}
    summary: dict = {"protocol": protocol, "speed": None}
    if predictions.speed is not None:
        factor = predictions.speed.real_time_factor
        summary["speed"] = {"real_time_factor": factor, **asdict(predictions.speed)}
    for keys, rows in predictions.frame.group_by("audio", "split", "task", maintain_order=True):
        audio, split, task = (str(key) for key in keys)
        unit, names = clusters(rows)
        scores: dict = {
            "n": len(rows), "seconds": float(rows["seconds"].sum()), "clusters": len(set(names)), "unit": unit,
        }  # fmt: skip
        for name in metrics_of(task):
            figure = predictions.figure(name, rows, settings)
            if figure is not None:
                scores[name] = figure.to_json()
        summary.setdefault(audio, {}).setdefault(split, {})[task] = scores
    return summary


def _texts(frame: pl.DataFrame) -> dict[str, dict[str, dict[str, int]]]:
    """{<split>: {<task>: {n, and of UNUSUAL what there is: rows}}} of own audio."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for keys, rows in frame.filter(audio="own").group_by("split", "task", maintain_order=True):
        split, task = (str(key) for key in keys)
        counts = rows.select(expression.sum().alias(name) for name, expression in UNUSUAL.items())
        there = {name: count for name, count in counts.row(0, named=True).items() if count}
        found.setdefault(split, {})[task] = {"n": len(rows), **there}
    return found


def remarks(corpus: str, summary: dict) -> list[str]:
    """A line a set on references that are empty or cannot be written whole, and on answers that were cut."""
    protocol, lines = summary["protocol"], []
    for split, tasks in protocol.get("texts", {}).items():
        for task, counts in tasks.items():
            told = []
            if empty := counts.get("empty_references"):
                told.append(f"{empty} are empty after normaliser {protocol['normalizer']}")
                if task == "transcribe":
                    told[-1] += (
                        ", where every word written is an error"
                        if empty < counts["n"]
                        else ", so there are no error rates"
                    )
            if beyond := counts.get("references_beyond_limit"):
                told.append(
                    f"{beyond} are longer than generation.max_new_tokens, so nothing can write them whole"
                )
            if cut := counts.get("answers_cut"):
                told.append(f"{cut} answers were cut at generation.max_new_tokens")
            if told:
                lines.append(f"{corpus} {split} ({task}): of {counts['n']} references {'; '.join(told)}.")
    return lines
