"""The search for learning rates: the same few trials for every method, chosen on the development splits.

The grid is one multiplier for all of a method's base rates (`training.learning_rates`), so that every method
gets as many trials whatever the number of its parts; the ratio between the parts stays the configuration's. A
trial is a whole short training, its schedule included, and what counts is its lowest loss on dev.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steermoe.atomic_io import write_text
from steermoe.config import Training, VariantConfig
from steermoe.training.divergence import DivergedError
from steermoe.training.train import train

MULTIPLIERS = (0.3, 1.0, 3.0, 10.0)


def search(
    variants: Sequence[VariantConfig],
    shards: Sequence[Path],
    out: Path,
    root: Path | None,
    steps: int,
    multipliers: Sequence[float] = MULTIPLIERS,
    workers: int = 0,
) -> dict[str, Any]:
    """Train every variant with every multiplier for `steps` steps; write search.json and search.csv into `out`.

    Trials that are done lie in `out`/trials and are not repeated; one that was killed resumes.

    Returns:
        steps, trials (a row a trial), chosen: {method: {multiplier, learning_rates, best_dev_loss}}.

    Raises:
        ValueError: two variants of one method, or every trial of a method diverged.
    """
    methods = [variant.method for variant in variants]
    if len(set(methods)) < len(methods):
        raise ValueError(f"one variant a method is searched, found the methods {methods}")
    trials = [
        _trial(short(variant, steps, multiplier), multiplier, shards, out / "trials", root, workers)
        for variant in variants
        for multiplier in multipliers
    ]
    result = {
        "steps": steps,
        "trials": trials,
        "chosen": {method: choose(trials, method) for method in methods},
    }
    write_text(out / "search.json", json.dumps(result, indent=1) + "\n")
    write_text(out / "search.csv", _csv(trials))
    return result


def short(variant: VariantConfig, steps: int, multiplier: float) -> VariantConfig:
    """`variant` with its rates times `multiplier`, and with warm-up and evaluations to suit `steps`.

    The warm-up keeps its share of the steps; of a variant that is trained for epochs, it is a tenth of them at most.

    Raises:
        ValueError: there are no steps.
    """
    if steps < 1:
        raise ValueError(f"steps: found {steps}; legal: at least 1")
    training = variant.training
    if training.max_steps is None:
        warmup = min(training.warmup_steps, steps // 10)
    else:
        warmup = min(round(training.warmup_steps * (steps / training.max_steps)), steps - 1)
    changed = {
        "steps": steps,
        "epochs": None,
        "warmup_steps": warmup,
        "eval_steps": min(training.eval_steps, max(1, steps // 4)),
        # Rounded to what one would write: 0.3 * 1e-3 is 0.0003 and not 0.00029999999999999997.
        "learning_rates": {
            name: float(f"{rate * multiplier:.6g}") for name, rate in training.learning_rates.items()
        },
    }
    shortened = Training.model_validate(training.model_dump() | changed)  # a copy would not be checked
    return variant.model_copy(update={"training": shortened})


def choose(trials: Sequence[dict[str, Any]], method: str) -> dict[str, Any]:
    """The trial of a method with the lowest loss on dev, the first of equals.

    Raises:
        ValueError: none of them ended with a loss.
    """
    ended = [row for row in trials if row["method"] == method and row["best_dev_loss"] is not None]
    if not ended:
        raise ValueError(f"every trial of {method} diverged; lower training.learning_rates.{method}")
    best = min(ended, key=lambda row: row["best_dev_loss"])
    return {name: best[name] for name in ("multiplier", "learning_rates", "best_dev_loss")}


def _trial(
    variant: VariantConfig,
    multiplier: float,
    shards: Sequence[Path],
    trials: Path,
    root: Path | None,
    workers: int,
) -> dict[str, Any]:
    folder = trials / f"{variant.name}-{multiplier:g}"
    done, config = folder / "trial.json", variant.to_json()
    if done.exists():
        trial = json.loads(done.read_text())
        if trial.pop("config") == config:
            return trial
    trial: dict[str, Any] = {
        "method": variant.method,
        "multiplier": multiplier,
        "learning_rates": variant.training.learning_rates,
    }
    try:
        result = train(variant, shards, folder, root, workers=workers)
        trial |= {name: result[name] for name in ("best_dev_loss", "best_step", "steps")}
    except DivergedError as error:
        print(error)
        trial |= {"best_dev_loss": None, "best_step": None, "steps": None}
    write_text(done, json.dumps(trial | {"config": config}, indent=1) + "\n")
    return trial


def _csv(trials: Sequence[dict[str, Any]]) -> str:
    rates = sorted({name for row in trials for name in row["learning_rates"]})
    text = io.StringIO()
    columns = ["method", "multiplier", *rates, "best_dev_loss", "best_step", "steps"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | row["learning_rates"] for row in trials)
    return text.getvalue()
