"""The search for learning rates: the same few short trainings for every method, chosen on the development splits.

The grid is one multiplier for all of a method's base rates (`training.learning_rates`), so every method has as many
trials whatever the number of its parts; the ratio between the parts stays the configuration's.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from steermoe.atomic_io import write_text
from steermoe.config import Training, VariantConfig
from steermoe.training.rows import DivergedError
from steermoe.training.train import train

MULTIPLIERS = (0.3, 1.0, 3.0, 10.0)


def search(
    variants: Sequence[VariantConfig],
    shards: Sequence[Path],
    out: Path,
    root: Path | None,
    steps: int,
    multipliers: Sequence[float] = MULTIPLIERS,
) -> dict[str, Any]:
    """Train every variant with every multiplier for `steps` steps; write search.json and search.csv into `out`.

    Finished trials are kept in `out`/trials and not repeated; one that was killed resumes.

    Returns:
        steps, trials (a row for each), chosen: {method: {multiplier, learning_rates, best_dev_loss}}.

    Raises:
        ValueError: two variants of one method, or every trial of a method diverged.
    """
    methods = [variant.method for variant in variants]
    if len(set(methods)) < len(methods):
        raise ValueError(f"one variant a method is searched, found the methods {methods}")
    trials = [
        _trial(short(variant, steps, multiplier), multiplier, shards, out / "trials", root)
        for variant in variants
        for multiplier in multipliers
    ]
    chosen = {method: choose(trials, method) for method in methods}
    result = {"steps": steps, "trials": trials, "chosen": chosen}
    write_text(out / "search.json", json.dumps(result, indent=1) + "\n")
    rates = sorted({name for row in trials for name in row["learning_rates"]})
    columns = ["method", "multiplier", *rates, "best_dev_loss", "best_step", "steps"]
    rows = [dict.fromkeys(columns) | row | row["learning_rates"] for row in trials]
    write_text(out / "search.csv", pl.DataFrame(rows, infer_schema_length=None).select(columns).write_csv())
    return result


def short(variant: VariantConfig, steps: int, multiplier: float) -> VariantConfig:
    """Return `variant` with its rates times `multiplier`, and with warm-up and evaluations to suit `steps`.

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
        "max_steps": steps,
        "epochs": None,
        "criterion": "loss",  # what `choose` compares
        "wer_rows": None,
        "wer_normalizers": {},
        "wer_ctc_weight": 0.0,
        "warmup_steps": warmup,
        "eval_steps": min(training.eval_steps, max(1, steps // 4)),
        # Rounded: 0.3 * 1e-3 is 0.0003 and not 0.00029999999999999997.
        "learning_rates": {
            name: float(f"{rate * multiplier:.6g}") for name, rate in training.learning_rates.items()
        },
    }
    shortened = Training.model_validate(training.model_dump() | changed)  # a copy would not be checked
    return variant.model_copy(update={"training": shortened})


def choose(trials: Sequence[dict[str, Any]], method: str) -> dict[str, Any]:
    """Return the trial of a method with the lowest loss on dev, the first of equals.

    Raises:
        ValueError: all of them diverged.
    """
    ended = [row for row in trials if row["method"] == method and row["best_dev_loss"] is not None]
    if not ended:
        raise ValueError(f"every trial of {method} diverged; lower training.learning_rates.{method}")
    best = min(ended, key=lambda row: row["best_dev_loss"])
    return {name: best[name] for name in ("multiplier", "learning_rates", "best_dev_loss")}


def _trial(
    variant: VariantConfig, multiplier: float, shards: Sequence[Path], trials: Path, root: Path | None
) -> dict[str, Any]:
    folder = trials / f"{variant.name}-{multiplier:g}"
    done, config = folder / "trial.json", variant.to_json()
    if done.exists():
        trial = json.loads(done.read_text())
        if trial.pop("config") == config:
            return trial
    rates = variant.training.learning_rates
    trial = {"method": variant.method, "multiplier": multiplier, "learning_rates": rates}
    result: dict[str, Any] = {}
    try:
        result = train(variant, shards, folder, root)
    except DivergedError as error:
        print(error)
    trial |= {name: result.get(name) for name in ("best_dev_loss", "best_step", "steps")}
    write_text(done, json.dumps(trial | {"config": config}, indent=1) + "\n")
    return trial
