"""Print the comparison of the selected profile."""

from pathlib import Path

from pipeline.options import Params


def main(params: Params = Path("params.yaml")) -> None:
    """Print the table of the last comparison, and where report, pictures and runs are."""
    from steermoe import config
    from steermoe.analysis import comparison, report
    from steermoe.cli.terminal import plain_console

    settings = config.load(params)
    reports = Path("reports") / settings.profile
    compared = comparison.compare(
        settings.compare,
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
