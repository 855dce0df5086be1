"""Where evaluations lie, and how they are written and read.

<evaluations>/<variant>/<corpus>/                   one variant on one corpus
<evaluations>/baseline/<corpus>/<system>/       encoder (its own decoder), constant, text-only
    metrics.json         what `summarise` returns, or {"skipped": <reason>} where the corpus was not to be had
    predictions.parquet  the rows of `Predictions.frame`
<evaluations>/<variant or baseline>/<corpus>/text_tasks.json  what `text_tasks` returns for the LLM, of variants that change it
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import polars as pl

from steermoe.atomic_io import write_text, written_whole
from steermoe.evaluation.predictions import Predictions, Protocol

BASELINE = "baseline"
METRICS, PREDICTIONS = "metrics.json", "predictions.parquet"
TEXT_TASKS = "text_tasks.json"


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


def figures(corpus: str, summary: dict) -> dict[str, float]:
    """A summary as numbers with names for a tracker: eval/<corpus>/<split>/<metric>, with _low and _high.

    With shuffled audio the name begins with `control`.
    """
    found: dict[str, float] = {}
    for audio, first in (("own", "eval"), ("shuffled", "control")):
        for split, tasks in summary.get(audio, {}).items():
            for scores in tasks.values():
                for metric, figure in scores.items():
                    if isinstance(figure, dict):
                        name = f"{first}/{corpus}/{split}/{metric}"
                        bounds = {f"{name}_{bound}": figure[bound] for bound in ("low", "high")}
                        found |= {name: figure["value"], **bounds}
    if summary["speed"] is not None:
        found[f"eval/{corpus}/real_time_factor"] = summary["speed"]["real_time_factor"]
    return found


def samples(frame: pl.DataFrame, seed: int, count: int = 50) -> tuple[list[str], list[tuple]]:
    """Names and rows of a table of predictions, own audio, a seeded sample of `count` of every split."""
    own = frame.filter(audio="own")
    parts = [
        part.sample(min(count, len(part)), seed=seed)
        for part in own.partition_by("split", maintain_order=True)
    ]
    columns = {
        "audio": "source_id", "split": "split", "task": "task", "reference": "reference",
        "prediction": "hypothesis", "errors": "errors",
    }  # fmt: skip
    chosen = [part.sort("source_id").select(columns.values()).rows() for part in parts]
    return list(columns), [row for rows in chosen for row in rows]


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


def read_text_tasks(evaluations: Path, variants: Sequence[str]) -> dict[str, dict]:
    """The scores of the LLM's text tasks, of BASELINE and of the variants that have some: the same on every corpus."""
    found = {name: sorted(evaluations.glob(f"{name}/*/{TEXT_TASKS}")) for name in (BASELINE, *variants)}
    return {name: read_json(paths[0]) for name, paths in found.items() if paths}
