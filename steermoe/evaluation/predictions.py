"""Predictions for every utterance, their summary (metrics with intervals and protocol), and the files of both.

<evaluations>/<variant>/<corpus>/               a variant on a corpus
<evaluations>/baseline/<corpus>/<system>/       encoder (its own decoder), cascade, constant, text-only
    metrics.json         what `summarise` returns, or {"skipped": <reason>} for a skipped corpus
    predictions.parquet  the rows of `Predictions.frame`
<evaluations>/<variant or baseline>/<corpus>/text_tasks.json  what `text_tasks` returns, if the LLM is changed
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from steermoe.atomic_io import write_text, written_whole
from steermoe.config import Evaluation
from steermoe.evaluation.metrics import metrics_of
from steermoe.evaluation.significance import bootstrap_interval

BASELINE = "baseline"
METRICS, PREDICTIONS, TEXT_TASKS = "metrics.json", "predictions.parquet", "text_tasks.json"
PROTOCOL = ("normalizer", "decoding", "interval", "bootstrap_samples", "bootstrap_unit", "seed")
UNUSUAL = {  # counted in the protocol: expressions over the columns of `Predictions.frame`
    "empty_references": pl.col("chars") == 0,
    "references_beyond_limit": ~pl.col("target_fits"),
    "answers_cut": pl.col("cut"),
}
# A bootstrap over few clusters gives intervals that are too narrow: of simulated speakers whose error rates differ,
# 95 % intervals over 8 held the true rate in 89 % of the cases, over 4 in 82 %.
MIN_CLUSTERS = 8
UNKNOWN = ("unknown", "none")  # values of `speaker` that name nobody
RESAMPLED = {  # evaluation.bootstrap_unit -> its name in the protocol
    "auto": f"speakers (sets of fewer than {MIN_CLUSTERS} known speakers: texts; of fewer texts, too: rows)",
    "speaker": "speakers (texts where they are unknown)",
    "text": "texts",
    "row": "rows",
}

Respond = Callable[[Iterable[pl.DataFrame]], Iterator[tuple[int, str]]]
"""Batches of rows -> number of the row, counted through all batches, and text, in any order."""


@dataclass(frozen=True)
class System:
    """What is evaluated: anything that answers rows of utterances with texts.

    Attributes:
        decoding: how its texts come about, for the protocol.
        tokenizer, max_tokens: of the LLM, and the most tokens of an answer; None where that is no limit.
        max_seconds: longer audio is encoded up to this length; None: all of it.
        window: seconds that every utterance is padded to (`Encoder.window_seconds`).
    """

    respond: Respond
    decoding: str
    device: str
    tokenizer: Any = field(default=None, kw_only=True)
    max_tokens: int | None = field(default=None, kw_only=True)
    max_seconds: float | None = field(default=None, kw_only=True)
    window: float = field(default=0.0, kw_only=True)


class CutText(str):
    """An answer that reached the most tokens allowed."""


def batchwise(respond: Callable[[pl.DataFrame], Sequence[str]]) -> Respond:
    """Return a `Respond` that answers all rows of a batch together."""

    def respond_to_batches(batches: Iterable[pl.DataFrame]) -> Iterator[tuple[int, str]]:
        before = 0
        for rows in batches:
            yield from enumerate(respond(rows), start=before)
            before += len(rows)

    return respond_to_batches


@dataclass(frozen=True)
class Predictions:
    """`frame` has a row for each utterance and kind of audio, in the order of the evaluated frame.

    Columns: source_id, speaker, text (the normalised transcript of the first row about the same audio or, with videos,
    the same video; where there is none, the name of that row), split, language, task, prompt, audio (row of
    baselines.AUDIO or VIDEO), heard (source_id of the encoded audio), seconds (of that audio), reference, hypothesis,
    errors, words, char_errors, chars, exact, those of `qa.COLUMNS`, target_fits (the reference with its end token is
    not longer than an answer may be), cut (the answer reached that limit); both are null for systems without a limit
    in tokens. All counts are after `normalizer`.

    `speed` is about the pass over own audio: wall time from decoding audio to detokenising, the seconds of audio that
    were encoded, and their ratio, the real-time factor (below 1 is faster than real time).
    """

    frame: pl.DataFrame
    decoding: str
    seed: int
    speed: dict[str, Any] | None
    normalizer: str


def clusters(rows: pl.DataFrame, unit: str) -> tuple[str, list[str]]:
    """Return what the bootstrap over these rows draws (speakers, texts or rows), and the cluster of each row.

    Args:
        rows: of `Predictions.frame`, one set.
        unit: `evaluation.bootstrap_unit`. Rows of unknown speakers are clusters by text. `auto` draws speakers if at
            least MIN_CLUSTERS are known, else texts if there are as many, else rows.
    """
    known = ~pl.col("speaker").is_in(UNKNOWN)
    speakers = rows.filter(known)["speaker"].n_unique()
    if unit == "auto":
        counts = {"speaker": speakers, "text": rows["text"].n_unique()}
        unit = next((name for name, count in counts.items() if count >= MIN_CLUSTERS), "row")
    if unit == "speaker" and not speakers:
        unit = "text"
    named = {
        "speaker": pl.when(known).then(pl.format("speaker {}", "speaker")).otherwise("text"),
        "text": pl.col("text"),
        "row": pl.col("source_id"),
    }
    return f"{unit}s", rows.select(named[unit].alias("name"))["name"].to_list()


def summarise(predictions: Predictions, settings: Evaluation) -> dict:
    """Return metrics with intervals for each kind of audio, split and task, and their protocol.

    {protocol, speed, <audio>: {<split>: {<task>: {n, seconds, clusters, unit, languages, <metric>: {value, low, high,
    n}}}}}; rates are fractions, not percent. The bootstrap of a set draws from its `clusters`, whose kind is `unit`.
    Metrics that are not defined for a set are left out; `n` of a metric counts the rows that it is defined for.
    `protocol.texts` counts unusual references and answers (see `remarks`).
    """
    protocol = {
        "normalizer": predictions.normalizer,
        "decoding": predictions.decoding,
        "interval": f"{100 * settings.confidence:g} % percentile bootstrap over {RESAMPLED[settings.bootstrap_unit]}",
        "bootstrap_samples": settings.bootstrap_samples,
        "bootstrap_unit": settings.bootstrap_unit,
        "seed": predictions.seed,
        "texts": _texts(predictions.frame),
    }
    summary: dict = {"protocol": protocol, "speed": predictions.speed}
    for keys, rows in predictions.frame.group_by("audio", "split", "task", maintain_order=True):
        audio, split, task = (str(key) for key in keys)
        unit, names = clusters(rows, settings.bootstrap_unit)
        scores: dict = {
            "n": len(rows), "seconds": float(rows["seconds"].sum()), "clusters": len(set(names)), "unit": unit,
            "languages": sorted(set(rows["language"])),
        }  # fmt: skip
        for name, metric in metrics_of(task).items():
            counts = metric.counts(rows)
            if counts[1].any():  # else it is not defined for any row, or no reference holds a word
                samples, confidence = settings.bootstrap_samples, settings.confidence
                interval = bootstrap_interval(counts, samples, confidence, predictions.seed, names)
                scores[name] = asdict(interval) | {"n": rows.filter(metric.concerns).height}
        summary.setdefault(audio, {}).setdefault(split, {})[task] = scores
    return summary


def _texts(frame: pl.DataFrame) -> dict[str, dict[str, dict[str, int]]]:
    """Return {<split>: {<task>: {n, and what there is of UNUSUAL: rows}}} of own audio."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for keys, rows in frame.filter(audio="own").group_by("split", "task", maintain_order=True):
        split, task = (str(key) for key in keys)
        counts = rows.select(expression.sum().alias(name) for name, expression in UNUSUAL.items())
        there = {name: count for name, count in counts.row(0, named=True).items() if count}
        found.setdefault(split, {})[task] = {"n": len(rows), **there}
    return found


def remarks(corpus: str, summary: dict) -> list[str]:
    """Return a line for each set with references that are empty or too long, or with answers that were cut."""
    protocol, lines = summary["protocol"], []
    sets = [
        (split, task, counts)
        for split, tasks in protocol.get("texts", {}).items()
        for task, counts in tasks.items()
    ]
    for split, task, counts in sets:
        parts = []
        if empty := counts.get("empty_references"):
            effect = "every word written is an error" if empty < counts["n"] else "there are no error rates"
            effect = f" ({effect})" if task == "transcribe" else ""
            parts.append(f"{empty} are empty after normaliser {protocol['normalizer']}{effect}")
        if beyond := counts.get("references_beyond_limit"):
            parts.append(f"{beyond} are longer than generation.max_new_tokens and cannot be written whole")
        if cut := counts.get("answers_cut"):
            parts.append(f"{cut} answers were cut at generation.max_new_tokens")
        if parts:
            lines.append(f"{corpus} {split} ({task}): of {counts['n']} references {'; '.join(parts)}.")
    return lines


@dataclass(frozen=True)
class Result:
    """One system on one corpus. `skipped` is the reason why `summary` and `frame` are empty, if they are."""

    summary: dict
    frame: pl.DataFrame
    skipped: str | None


def write_result(folder: Path, predictions: Predictions, summary: dict) -> None:
    """Write both files of an evaluation, metrics.json last."""
    with written_whole(folder / PREDICTIONS) as temporary:
        predictions.frame.write_parquet(temporary)
    write_json(folder / METRICS, summary)


def write_skipped(folder: Path, reason: str) -> None:
    """Write to `folder` that there was nothing to evaluate, and why."""
    write_json(folder / METRICS, {"skipped": reason})


def read_result(folder: Path) -> Result:
    """Read the files of `write_result` or `write_skipped`."""
    summary = read_json(folder / METRICS)
    if "skipped" in summary:
        return Result({}, pl.DataFrame(), summary["skipped"])
    if missing := [name for name in PROTOCOL if name not in summary.get("protocol", {})]:
        raise ValueError(
            f"{folder / METRICS}: figures without their protocol ({', '.join(missing)}); repeat the stage "
            "that wrote them"
        )
    return Result(summary, pl.read_parquet(folder / PREDICTIONS), None)


def read_results(evaluations: Path) -> dict[str, dict[str, Result]]:
    """Read all results as {system: {corpus: result}}, sorted by name; baselines are called "baseline/<system>"."""
    results: dict[str, dict[str, Result]] = {}
    for path in sorted(evaluations.glob(f"*/*/{METRICS}")):
        results.setdefault(path.parent.parent.name, {})[path.parent.name] = read_result(path.parent)
    for path in sorted(evaluations.glob(f"{BASELINE}/*/*/{METRICS}")):
        system = f"{BASELINE}/{path.parent.name}"
        results.setdefault(system, {})[path.parent.parent.name] = read_result(path.parent)
    return results


def read_text_tasks(evaluations: Path, variants: Sequence[str]) -> dict[str, dict]:
    """Read the scores on text tasks of BASELINE and of the variants that have some."""
    found = {name: sorted(evaluations.glob(f"{name}/*/{TEXT_TASKS}")) for name in (BASELINE, *variants)}
    return {name: read_json(paths[0]) for name, paths in found.items() if paths}


def figures(corpus: str, summary: dict) -> dict[str, float]:
    """Return a summary as named numbers for MLflow: eval/<corpus>/<split>/<metric>, with _low and _high.

    With shuffled audio the name begins with `control`.
    """
    found: dict[str, float] = {}
    for audio, first in (("own", "eval"), ("shuffled", "control")):
        for split, tasks in summary.get(audio, {}).items():
            for scores in tasks.values():
                for key, figure in scores.items():
                    if isinstance(figure, dict):
                        name = f"{first}/{corpus}/{split}/{key}"
                        found |= {
                            name: figure["value"],
                            f"{name}_low": figure["low"],
                            f"{name}_high": figure["high"],
                        }
    if summary["speed"] is not None:
        found[f"eval/{corpus}/real_time_factor"] = summary["speed"]["real_time_factor"]
    return found


def samples(frame: pl.DataFrame, seed: int, count: int = 50) -> tuple[list[str], list[tuple]]:
    """Return names and rows of a table of predictions: a random sample of `count` rows of every split, own audio."""
    columns = {
        "audio": "source_id", "split": "split", "task": "task", "reference": "reference",
        "prediction": "hypothesis", "errors": "errors",
    }  # fmt: skip
    splits = frame.filter(audio="own").partition_by("split", maintain_order=True)
    chosen = [part.sample(min(count, len(part)), seed=seed).sort("source_id") for part in splits]
    return list(columns), [row for part in chosen for row in part.select(columns.values()).rows()]


def read_json(path: Path) -> dict:
    """Read a JSON object; ValueError names the file where it holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); write it anew by repeating its stage") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: found {type(value).__name__}, expected a JSON object; repeat its stage")
    return value


def write_json(path: Path, value: dict) -> None:
    """Write a JSON object, indented, in the order given. NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
