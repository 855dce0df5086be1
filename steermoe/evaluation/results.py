"""Where evaluations lie, and how they are written and read.

<evaluations>/<arm>/<corpus>/                   one arm on one corpus
<evaluations>/baseline/<corpus>/<system>/       encoder (its own decoder), constant, text-only
    metrics.json         what `summarise` returns, or {"skipped": <reason>} where the corpus was not to be had
    predictions.parquet  the rows of `Predictions.frame`
<evaluations>/<arm>/<corpus>/preservation.json  what `preservation.check` returns
<evaluations>/baseline/<corpus>/text_tasks.json what `preservation.text_tasks` returns
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import polars as pl

from steermoe.data.staging import write_text, written_whole
from steermoe.evaluation.predictions import Predictions, Protocol

BASELINE = "baseline"
METRICS, PREDICTIONS = "metrics.json", "predictions.parquet"
PRESERVATION, TEXT_TASKS = "preservation.json", "text_tasks.json"


@dataclass(frozen=True)
class Result:
    """One system on one corpus. `skipped` tells why `summary` and `frame` are empty."""

    summary: dict
    frame: pl.DataFrame
    skipped: str | None


def write_result(folder: Path, predictions: Predictions, summary: dict) -> None:
    """Write both files of an evaluation; metrics.json last, so that it vouches for the other."""
    with written_whole(folder / PREDICTIONS) as temporary:
        predictions.frame.write_parquet(temporary)
    write_json(folder / METRICS, summary)


def write_skipped(folder: Path, reason: str) -> None:
    """Say in `folder` that there was nothing to evaluate, and why."""
    write_json(folder / METRICS, {"skipped": reason})


def read_result(folder: Path) -> Result:
    """Read what `write_result` or `write_skipped` left in `folder`."""
    summary = read_json(folder / METRICS)
    if "skipped" in summary:
        return Result({}, pl.DataFrame(), summary["skipped"])
    if missing := [field.name for field in fields(Protocol) if field.name not in summary.get("protocol", {})]:
        raise ValueError(
            f"{folder / METRICS}: figures without their protocol ({', '.join(missing)}); repeat the stage "
            "that wrote them"
        )
    return Result(summary, pl.read_parquet(folder / PREDICTIONS), None)


def read_results(evaluations: Path) -> dict[str, dict[str, Result]]:
    """All results as {system: {corpus: result}}, sorted by name; baselines are called "baseline/<system>"."""
    results: dict[str, dict[str, Result]] = {}
    for path in sorted(evaluations.glob(f"*/*/{METRICS}")):
        results.setdefault(path.parent.parent.name, {})[path.parent.name] = read_result(path.parent)
    for path in sorted(evaluations.glob(f"{BASELINE}/*/*/{METRICS}")):
        system = f"{BASELINE}/{path.parent.name}"
        results.setdefault(system, {})[path.parent.parent.name] = read_result(path.parent)
    return results


def read_json(path: Path) -> dict:
    """The object in a JSON file; ValueError naming the file where it holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); write it anew by repeating its stage") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: found {type(value).__name__}, expected a JSON object; repeat its stage")
    return value


def write_json(path: Path, value: dict) -> None:
    """Write a JSON object, indented, in the order given. NaN is refused: JSON has none."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_preservation(evaluations: Path, arms: Sequence[str]) -> tuple[dict[str, list[dict]], dict]:
    """What `preservation.check` found for each arm, one a corpus, and the scores of the LLM's text tasks.

    The scores are the same on every corpus, and empty where the LLM brings no tasks.
    """
    checks = {
        arm: [read_json(path) for path in sorted(evaluations.glob(f"{arm}/*/{PRESERVATION}"))] for arm in arms
    }
    scores = sorted(evaluations.glob(f"{BASELINE}/*/{TEXT_TASKS}"))
    return {arm: found for arm, found in checks.items() if found}, read_json(scores[0]) if scores else {}
