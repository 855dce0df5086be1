"""The comparison as text: one table for the terminal, and a Markdown report with all tables and pictures."""

import math
from collections.abc import Mapping, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from steermoe.analysis.comparison import Comparison, Row, Set
from steermoe.corpora import reader
from steermoe.evaluation.metrics import METRICS
from steermoe.evaluation.significance import Difference

NONE = "-"
NOT_AVAILABLE = "not available"
BORDER = 3  # of a column in the terminal: a line and a space on either side
Lines = list[str]


class Printed:
    """The main table for a terminal; where that is too narrow, several tables below each other.

    Args:
        comparison: what is shown.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.header, self.body = main_table(comparison, "\n")
        self.styles = [None if row.kind == "variant" else "dim" for row in comparison.rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield "Error rates and accuracy in %, with intervals; p: against the reference variant, corrected (Holm)"
        for columns in self.groups(options.max_width):
            table = Table(show_lines=True)
            room = options.max_width - 1 - sum(self.width(column) + BORDER for column in columns[1:])
            longest = max(len(line[0]) for line in self.body)
            table.add_column(self.header[0], width=max(self.width(0), min(longest, room - BORDER)))
            for column in columns[1:]:
                table.add_column(self.header[column], justify="right", width=self.width(column))
            for line, style in zip(self.body, self.styles, strict=True):
                table.add_row(*(line[column] for column in columns), style=style)
            yield table

    def width(self, column: int) -> int:
        """Characters that a column needs: its longest line, its header and names broken into words."""
        lines = [text for line in self.body for text in line[column].split("\n")]
        if column == 0:
            lines = [word for line in lines for word in line.split()]
        return max(len(text) for text in [*self.header[column].split(), *lines])

    def groups(self, width: int) -> list[list[int]]:
        """Numbers of the columns of each table, the first column in all."""
        groups, used = [[0]], self.width(0) + BORDER + 1
        for column in range(1, len(self.header)):
            needed = self.width(column) + BORDER
            if used + needed > width and len(groups[-1]) > 1:
                groups.append([0])
                used = self.width(0) + BORDER + 1
            groups[-1].append(column)
            used += needed
        return groups


def printed(comparison: Comparison) -> Printed:
    """The main table, to be printed by rich."""
    return Printed(comparison)


def main_table(comparison: Comparison, newline: str) -> tuple[Lines, list[Lines]]:
    """Header and lines: trainable parameters, every set in its own metric, seconds a step, RTF.

    What was to be transcribed comes first, then what was asked.
    """
    tasks = dict.fromkeys(["transcribe", *(place.task for place in comparison.sets if place.task)])
    places = [place for task in tasks for place in comparison.sets_of(task)]
    header = [
        "system",
        "trainable parameters",
        *(f"{place.title} {measure(comparison, place)}" for place in places),
    ]
    header += ["s / step", "RTF"]
    lines = []
    for row in comparison.rows:
        line = [row.title, NONE if row.trainable is None else f"{row.trainable:,}"]
        line += [
            cell_text(comparison, row, place, comparison.own_metric(place) or "", newline) for place in places
        ]
        lines.append([*line, number(row.seconds_per_step, 2), number(row.real_time_factor, 3)])
    return header, lines


def measure(comparison: Comparison, place: Set) -> str:
    """The title of a set's own metric; of a corpus that is missing, what its card says."""
    metric = comparison.own_metric(place)
    if metric is not None:
        return METRICS[metric].title
    return reader(place.corpus).CARD.metric.partition(";")[0].partition(",")[0]


def cell_text(comparison: Comparison, row: Row, place: Set, metric: str, newline: str) -> str:
    """Value, interval and, for a variant, the corrected p-value of its difference from the reference.

    The number of utterances too, where it is over fewer than other systems.
    """
    if not place.task:
        return NOT_AVAILABLE
    cell = comparison.cell(row, place, metric)
    if cell is None:
        return NONE
    text = f"{percent(cell.value)}{newline}[{percent(cell.low)}, {percent(cell.high)}]"
    if comparison.is_partial(cell):
        text = f"{text}{newline}n = {cell.n}"
    return text if cell.against is None else f"{text}{newline}p {p_value(cell.against)}"


def markdown(comparison: Comparison, sections: Sequence[Lines], pictures: Mapping[str, str]) -> str:
    """The whole report. `pictures` maps a file's name to what it shows; `sections` follow the tables."""
    lines = ["# Comparison", "", *how_measured(comparison), ""]
    lines += ["## Results", "", *markdown_table(*main_table(comparison, "<br>")), ""]
    lines += ["## Further metrics", "", *further_metrics(comparison), ""]
    lines += [f"## Differences from {comparison.reference}", "", *differences(comparison), ""]
    if pictures:
        lines += ["## Pictures", ""]
        for name, caption in pictures.items():
            lines += [f"![{caption}]({name})", "", f"*{caption}*", ""]
    for section in filter(None, sections):
        lines += [*section, ""]
    return "\n".join(lines).rstrip() + "\n"


def how_measured(comparison: Comparison) -> Lines:
    """The protocol, so that no number stands without it."""
    protocol = comparison.protocol
    lines = []
    if protocol:
        lines.append(
            f"Rates in %, normaliser `{protocol['normalizer']}`; decoding: {protocol['decoding']}. "
            f"In brackets: {protocol['interval']}, {protocol['bootstrap_samples']} resamples, "
            f"seed {protocol['seed']}. `p`: paired bootstrap against `{comparison.reference}` on the same "
            f"utterances, two-sided, corrected for all {comparison.tests} comparisons of this report (Holm); "
            "`≤`: no resample was as far off, so only this bound is known. "
            "Where recordings are resampled, intervals and p-values do not cover new speakers; they never cover other "
            "training seeds. An interval without width means that all utterances agree, not that the value is certain."
        )
    counts = ", ".join(
        f"{p.title} ({p.task}): {p.n} ({p.clusters} {p.unit})" for p in comparison.sets if p.task
    )
    lines += ["", f"Utterances: {counts or 'none'}.", ""]
    if any(map(comparison.is_partial, comparison.cells)):
        lines += [
            "`n`: a figure over fewer utterances than the set has; it does not compare with the others.",
            "",
        ]
    for corpus, reason in comparison.missing.items():
        lines += [f"Corpus `{corpus}` is not available: {reason}", ""]
    for speed in list(comparison.speeds.values())[:1]:
        lines += [
            "RTF: wall seconds for a second of audio over all splits, from audio file to text "
            f"(decoding, features, encoder, LLM), batches of {speed['max_batch_seconds']:g} audio seconds, "
            f"{speed['device']}, {speed['threads']} thread(s). It holds for the machine it was measured on.",
            "",
        ]
    lines.append("`shuffled audio`: every row hears another row's audio; what is right then is guessed.")
    for row in comparison.rows:
        if row.decoding:
            lines += ["", f"`{row.title}`: {row.decoding}."]
    return lines


def further_metrics(comparison: Comparison) -> Lines:
    """Every metric that the main table has not, for every set that it says something about."""
    measured = {(cell.corpus, cell.split, cell.task, cell.metric) for cell in comparison.cells}
    columns = [
        (place, name)
        for place in comparison.sets
        for name in METRICS
        if name != comparison.own_metric(place) and (place.corpus, place.split, place.task, name) in measured
    ]
    header = ["system", *(f"{place.title} {METRICS[name].title}" for place, name in columns)]
    body = []
    for row in comparison.rows:
        texts = [cell_text(comparison, row, place, name, "<br>") for place, name in columns]
        body.append([row.title, *texts])
    return markdown_table(header, body)


def differences(comparison: Comparison) -> Lines:
    """Variant minus reference in percentage points, with interval and p-value, for every set and metric."""
    body = []
    for cell in comparison.cells:
        if cell.against is not None:
            points = [f"{100 * x:+.1f}" for x in (cell.against.value, cell.against.low, cell.against.high)]
            name = f"{cell.corpus} {cell.split}"
            found = [points[0], f"[{points[1]}, {points[2]}]", p_value(cell.against), str(cell.n)]
            body.append([cell.system, name, METRICS[cell.metric].title, *found])
    if not body:
        return ["There is no other variant."]
    return markdown_table(["variant", "set", "metric", "difference (points)", "interval", "p", "n"], body)


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> Lines:
    """A table in GitHub's Markdown, first column left, the others right."""
    rule = [":--", *("--:" for _ in header[1:])]
    return ["| " + " | ".join(escaped(text) for text in line) + " |" for line in (header, rule, *body)]


def escaped(text: str) -> str:
    """Text that stays in its cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def percent(value: float) -> str:
    """A fraction as percent with one decimal."""
    return f"{100 * value:.1f}"


def p_value(difference: Difference) -> str:
    """The corrected p-value with three decimals; as a bound, never rounded down, where no more is known."""
    p = difference.p if difference.corrected is None else difference.corrected
    if difference.is_bound:
        return f"≤ {math.ceil(round(1e4 * p, 6)) / 1e4:g}"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def number(value: float | None, decimals: int) -> str:
    """A number, or a dash where there is none."""
    return NONE if value is None else f"{value:.{decimals}f}"
