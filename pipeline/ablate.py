"""Compare the arms in force; nothing is trained here."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.options import Arms, Evaluations, History, Metrics, Models, Out, Params, Shards, Timing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steermoe.analysis.comparison import Comparison
    from steermoe.training.tracking import Tracker


def main(
    arms: Arms,
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
    from steermoe.analysis import comparison, plots, published, report, sections, steering
    from steermoe.data.shards import read_rows
    from steermoe.data.staging import write_text
    from steermoe.evaluation import results
    from steermoe.serving.terminal import plain_console
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
    configs = {name: config.ArmConfig.from_json((arms / f"{name}.json").read_text()) for name in names}
    folders = {name: models / name for name in names}
    steered = {name: folders[name] for name, arm in configs.items() if arm.steering is not None}
    uses = steering.collect_all(steered, heard, settings.evaluation.batch_seconds, settings.seed)
    histories = {name: pl.read_csv(history / f"{name}.csv") for name in names}
    pictures = plots.draw_all(compared, histories, uses, out)
    read = results.read_results(evaluations)
    scored = {name: {c: read[name][c] for c in settings.corpora} for name in names}
    text = report.markdown(
        compared,
        [
            sections.training(compared),
            sections.seed_noise(compared, configs),
            sections.steering(uses),
            sections.preservation(*results.read_preservation(evaluations, names)),
            sections.worst_cases(scored),
            published.published(compared, settings.published),
        ],
        pictures,
    )
    write_text(out / "report.md", text)
    results.write_json(out / "comparison.json", compared.to_json() | {"steering": uses})
    results.write_json(metrics, compared.headline())
    plain_console().print(report.printed(compared))
    _track(Tracker(settings.profile), compared, folders, out)


def _track(tracker: "Tracker", compared: "Comparison", folders: "Mapping[str, Path]", out: Path) -> None:
    """The comparison in MLflow, with the best arm as the profile's champion."""
    from steermoe.analysis import champion

    tracker.attach_execution(folders)
    tracker.log_tree(compared.headline(), "eval")
    tracker.artifact(out, "comparison")
    if errors := champion.headline_errors(compared):
        tracker.log_tree(errors, "headline_error")
        best = next(iter(errors))
        tracker.crown(best, folders[best], errors[best], champion.measured_on(compared))
    tracker.describe(f"Compared: {', '.join(folders)}\n\n{champion.table(errors)}", folders)
    tracker.finish()
