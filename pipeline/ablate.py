"""Compare the selected variants; nothing is trained here."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.options import Evaluations, History, Metrics, Models, Out, Params, Shards, Timing, Variants

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steermoe.analysis.comparison import Comparison
    from steermoe.config import VariantConfig
    from steermoe.training.tracking import Tracker


def main(
    variants: Variants,
    models: Models,
    evaluations: Evaluations,
    history: History,
    timing: Timing,
    shards: Shards,
    out: Out,
    metrics: Metrics,
    params: Params = Path("params.yaml"),
) -> None:
    """Write table, pictures and report into OUT, and the headline figures into METRICS."""
    import polars as pl

    from steermoe import config
    from steermoe.analysis import comparison, plots, report, sections, steering
    from steermoe.atomic_io import write_text
    from steermoe.cli.terminal import plain_console
    from steermoe.data.shards import read_rows
    from steermoe.evaluation import predictions as results
    from steermoe.training.tracking import Tracker

    settings = config.load(params)
    names = settings.compare
    compared = comparison.compare(
        names,
        settings.reference,
        list(settings.corpora),
        evaluations,
        timing,
        settings.evaluation,
        settings.seed,
    )
    heard = [
        read_rows(shards / corpus, section.test)
        for corpus, section in settings.corpora.items()
        if corpus not in compared.missing
    ]
    configs = {
        name: config.VariantConfig.from_json((variants / f"{name}.json").read_text()) for name in names
    }
    folders = {name: models / name for name in names}
    steered = {name: folders[name] for name, variant in configs.items() if variant.steering is not None}
    uses = steering.collect_all(steered, heard, settings.evaluation.max_batch_seconds, settings.seed)
    histories = {name: pl.read_csv(history / f"{name}.csv") for name in names}
    pictures = plots.draw_all(compared, histories, uses, out)
    read = results.read_results(evaluations)
    scored = {name: {c: read[name][c] for c in settings.corpora} for name in names}
    text = report.markdown(
        compared,
        [
            sections.texts(scored),
            sections.training(compared),
            sections.seed_noise(compared, configs),
            sections.steering(uses),
            sections.preservation(compared, configs, results.read_text_tasks(evaluations, names)),
            sections.worst_cases(scored),
        ],
        pictures,
    )
    write_text(out / "report.md", text)
    results.write_json(out / "comparison.json", compared.to_json() | {"steering": uses})
    results.write_json(metrics, compared.headline())
    plain_console().print(report.printed(compared))
    _track(Tracker(settings.profile), compared, configs, folders, out)


def _track(
    tracker: "Tracker",
    compared: "Comparison",
    configs: "Mapping[str, VariantConfig]",
    folders: "Mapping[str, Path]",
    out: Path,
) -> None:
    """The comparison in MLflow, with the variant of the lowest dev loss as the profile's champion."""
    from steermoe.analysis import champion

    tracker.attach_execution(folders)
    tracker.log_tree(compared.headline(), "eval")
    tracker.artifact(out, "comparison")
    if losses := champion.dev_losses(compared, configs):
        tracker.log_tree(losses, "dev_loss")
        best = next(iter(losses))
        tracker.crown(best, folders[best], losses[best], champion.judged_by(configs[best]))
    tracker.describe(f"Compared: {', '.join(folders)}\n\n{champion.table(losses)}", folders)
    tracker.finish()
