"""Stage `ablate`, which compares the selected variants, and the command that prints the comparison."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.options import Evaluations, History, Metrics, Models, Out, Params, Shards, Timing, Variants

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steermoe.analysis.comparison import Comparison
    from steermoe.config import VariantConfig


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
    """Write table, plots and report into OUT, and the headline figures into METRICS."""
    from dataclasses import asdict

    import polars as pl

    from steermoe import config
    from steermoe.analysis import comparison, experts, plots, report
    from steermoe.atomic_io import write_text
    from steermoe.cli.terminal import plain_console
    from steermoe.data.shards import read_rows
    from steermoe.evaluation import predictions as results

    settings = config.load(params)
    names, corpora = settings.compare, settings.corpora
    texts = {name: (variants / f"{name}.json").read_text() for name in names}
    configs = {name: config.VariantConfig.from_json(text) for name, text in texts.items()}
    compared = comparison.compare(
        configs, settings.reference, list(corpora), evaluations, timing, settings.evaluation, settings.seed
    )
    folders = {name: models / name for name in names}
    rows = [
        read_rows(shards / c, section.test) for c, section in corpora.items() if c not in compared.missing
    ]
    steered = {name: folders[name] for name, variant in configs.items() if variant.steering is not None}
    uses = experts.collect_all(steered, rows, settings.evaluation.max_batch_seconds, settings.seed)
    histories = {name: pl.read_csv(history / f"{name}.csv") for name in names}
    captions = plots.draw_all(compared, histories, uses, out)
    read = results.read_results(evaluations)
    scored = {name: {corpus: read[name][corpus] for corpus in corpora} for name in names}
    tasks = results.read_text_tasks(evaluations, names)
    write_text(out / "report.md", report.markdown(compared, captions, scored, configs, uses, tasks))
    results.write_json(out / "comparison.json", asdict(compared) | {"steering": uses})
    results.write_json(metrics, compared.headline())
    console = plain_console()
    console.print(report.printed(compared, console.width))
    _log(settings.profile, compared, configs, folders, out)


def _log(
    profile: str,
    compared: "Comparison",
    configs: "Mapping[str, VariantConfig]",
    folders: "Mapping[str, Path]",
    out: Path,
) -> None:
    """Log the comparison to MLflow, and register the variant with the lowest dev loss as the profile's best."""
    from steermoe.analysis.comparison import dev_losses, measured_on
    from steermoe.analysis.report import markdown_table
    from steermoe.training.mlflow_logger import Tracker

    tracker, losses = Tracker(profile), dev_losses(compared, configs)
    tracker.attach_execution(folders)
    tracker.log_tree(compared.headline(), "eval")
    tracker.artifact(out, "comparison")
    if losses:
        tracker.log_tree(losses, "dev_loss")
        best = next(iter(losses))
        tracker.register_best(best, folders[best], losses[best], measured_on(configs[best]))
    table = markdown_table(["variant", "dev loss"], [[name, f"{loss:.4f}"] for name, loss in losses.items()])
    tracker.describe("\n".join([f"Compared: {', '.join(folders)}", "", *table]), folders)
    tracker.finish()


def show(params: Params = Path("params.yaml")) -> None:
    """Print the table of the last comparison, and where report, pictures and runs are."""
    from steermoe import config
    from steermoe.analysis import comparison, report
    from steermoe.cli.terminal import plain_console

    settings = config.load(params)
    reports = Path("reports") / settings.profile
    compared = comparison.compare(
        {name: settings.variant(name) for name in settings.compare},
        settings.reference,
        list(settings.corpora),
        reports / "evaluations",
        reports / "timing",
        settings.evaluation,
        settings.seed,
    )
    console = plain_console()
    console.print(report.printed(compared, console.width))
    print(
        f"report and pictures: {reports / 'comparison' / 'report.md'}\nruns: `make ui`, then the address it prints"
    )
