"""The comparison as text: a table for the terminal, and a report in Markdown with all tables and plots."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from steermoe.analysis.comparison import BASELINES, Comparison, Row, Set, scored, worst
from steermoe.config import VariantConfig
from steermoe.corpora import reader
from steermoe.evaluation.metrics import METRICS
from steermoe.evaluation.predictions import BASELINE, Result, remarks
from steermoe.evaluation.significance import Difference

NONE = "-"
NOT_AVAILABLE = "not available"
BORDER = 3  # of a column in the terminal: a line and a space on either side
PRINTED = "Error rates and accuracy in %, with intervals; p: against the reference variant, corrected (Holm)"
STEERING = (
    ("scales", 3),
    ("steer_to_residual", 4),
    ("effective_experts", 2),
    ("effective_load", 2),
)  # decimals
WORST = 3  # utterances shown for each variant and set
Lines = list[str]


def printed(comparison: Comparison, width: int) -> Group:
    """Return the main table for a terminal, to be printed by rich: several tables where it is too narrow for one."""
    header, body = main_table(comparison, "\n")
    needed = []
    for column, words in enumerate(header):  # a header is broken between its words, as are names of systems
        cells = [line for row in body for line in row[column].split("\n" if column else None)]
        needed.append(max(map(len, [*words.split(), *cells])))
    needed[0] = max(needed[0], min(20, max(len(row[0]) for row in body)))
    groups: list[list[int]] = [[]]
    for column in range(1, len(header)):
        if groups[-1] and sum(needed[c] + BORDER for c in [0, *groups[-1], column]) >= width:
            groups.append([])
        groups[-1].append(column)
    shown: list[Any] = [PRINTED]
    for columns in groups:
        table = Table(show_lines=True)
        for column in [0, *columns]:
            table.add_column(header[column], justify="right" if column else "left", width=needed[column])
        for row, line in zip(comparison.rows, body, strict=True):
            style = None if row.kind == "variant" else "dim"
            table.add_row(*(line[column] for column in [0, *columns]), style=style)
        shown.append(table)
    return Group(*shown)


def main_table(comparison: Comparison, newline: str) -> tuple[Lines, list[Lines]]:
    """Return header and lines: trainable parameters, every set in its own metric, seconds per step, RTF."""
    tasks = dict.fromkeys(["transcribe", *(place.task for place in comparison.sets if place.task)])
    places = [place for task in tasks for place in comparison.sets_of(task)]
    titles = [f"{place.title} {measure(comparison, place)}" for place in places]
    lines = []
    for row in comparison.rows:
        cells = [
            cell_text(comparison, row, place, comparison.own_metric(place) or "", newline) for place in places
        ]
        trainable = NONE if row.trainable is None else f"{row.trainable:,}"
        costs = number(row.seconds_per_step, 2), number(row.real_time_factor, 3)
        lines.append([row.title, trainable, *cells, *costs])
    return ["system", "trainable parameters", *titles, "s / step", "RTF"], lines


def measure(comparison: Comparison, place: Set) -> str:
    """Return the title of a set's own metric; of a missing corpus, that of its card."""
    metric = comparison.own_metric(place)
    if metric is not None:
        return METRICS[metric].title
    return reader(place.corpus).CARD.metric.partition(";")[0].partition(",")[0]


def cell_text(comparison: Comparison, row: Row, place: Set, metric: str, newline: str) -> str:
    """Return value, interval, the number of utterances where it is lower than others', and a variant's p-value."""
    if not place.task:
        return NOT_AVAILABLE
    cell = comparison.cell(row, place, metric)
    if cell is None:
        return NONE
    text = f"{percent(cell.value)}{newline}[{percent(cell.low)}, {percent(cell.high)}]"
    if comparison.is_partial(cell):
        text = f"{text}{newline}n = {cell.n}"
    return text if cell.against is None else f"{text}{newline}p {p_value(cell.against)}"


def markdown(
    comparison: Comparison,
    captions: Mapping[str, str],
    results: Mapping[str, Mapping[str, Result]],
    configs: Mapping[str, VariantConfig],
    uses: Mapping[str, dict],
    text_tasks: Mapping[str, dict],
) -> str:
    """Return the whole report.

    Args:
        comparison: the tables.
        captions: of plots, by the names of their files.
        results: of every variant and corpus.
        configs: of the variants.
        uses: what `experts.summarise` returns, by variant.
        text_tasks: scores of LLMs on text tasks, by system.
    """
    lines = ["# Comparison", "", *how_measured(comparison), ""]
    lines += ["## Results", "", *markdown_table(*main_table(comparison, "<br>")), ""]
    lines += ["## Further metrics", "", *further_metrics(comparison), ""]
    lines += [f"## Differences from {comparison.reference}", "", *differences(comparison), ""]
    lines += ["## Pictures", ""] if captions else []
    for name, caption in captions.items():
        lines += [f"![{caption}]({name})", "", f"*{caption}*", ""]
    sections = (
        texts_section(results),
        training_section(comparison),
        seed_section(comparison, configs),
        steering_section(uses),
        preservation_section(comparison, configs, text_tasks),
        worst_section(results),
    )
    for section in filter(None, sections):
        lines += [*section, ""]
    return "\n".join(lines).rstrip() + "\n"


def how_measured(comparison: Comparison) -> Lines:
    """Return the protocol of all numbers."""
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
    lines.append("`shuffled audio`: every row gets another row's audio; what is right then is a guess.")
    for row in comparison.rows:
        if row.decoding:
            lines += ["", f"`{row.title}`: {row.decoding}."]
    return lines


def further_metrics(comparison: Comparison) -> Lines:
    """Return a table of the metrics that the main table has not."""
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
    """Return a table of variant minus reference in percentage points, with interval and p-value."""
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
    """Return a table in GitHub's Markdown, first column left, the others right."""
    rule = [":--", *("--:" for _ in header[1:])]
    return ["| " + " | ".join(escaped(text) for text in line) + " |" for line in (header, rule, *body)]


def escaped(text: str) -> str:
    """Escape text that would leave its cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def percent(value: float) -> str:
    """Format a fraction as percent with one decimal."""
    return f"{100 * value:.1f}"


def p_value(difference: Difference) -> str:
    """Format the corrected p-value; as a bound, never rounded down, where no more is known."""
    p = difference.p if difference.corrected is None else difference.corrected
    if difference.is_bound:
        return f"≤ {math.ceil(round(1e4 * p, 6)) / 1e4:g}"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def number(value: float | None, decimals: int) -> str:
    """Format a number; None is a dash."""
    return NONE if value is None else f"{value:.{decimals}f}"


def texts_section(results: Mapping[str, Mapping[str, Result]]) -> Lines:
    """Return what is empty, longer than the limit of tokens or cut by it, for every system and set."""
    lines = [
        f"- `{system}`: {remark}"
        for system, corpora in results.items()
        for corpus, result in corpora.items()
        if result.summary
        for remark in remarks(corpus, result.summary)
    ]
    return ["## Texts that are empty or cut", "", *lines] if lines else []


def training_section(comparison: Comparison) -> Lines:
    """Return the trained parameters by part, and the duration of training."""
    lines = []
    for variant, timing in comparison.timing.items():
        counts = timing.get("trainable_parameters", {})
        parts = ", ".join(f"{part} {count:,}" for part, count in counts.items())
        steps = [str(timing.get(name, NONE)) for name in ("steps", "best_step")]
        lines.append([variant, parts or NONE, *steps, number(timing.get("seconds_per_step"), 2)])
    if not lines:
        return []
    header = ["variant", "trainable parameters", "steps", "best step", "s / step"]
    return ["## Training", "", *markdown_table(header, lines)]


def seed_section(comparison: Comparison, configs: Mapping[str, VariantConfig]) -> Lines:
    """Return error rates of variants that differ in their seed alone, to judge other differences by."""
    groups: dict[str, list[str]] = {}
    for variant in comparison.variants:
        if variant in configs:
            same = configs[variant].model_copy(update={"name": "", "seed": 0}).to_json()
            groups.setdefault(same, []).append(variant)
    lines = []
    for variants in groups.values():
        for place in comparison.sets_of("transcribe"):
            rows = [row for row in comparison.rows if row.kind == "variant" and row.system in variants]
            metric = comparison.own_metric(place) or ""
            cells = [cell for row in rows if (cell := comparison.cell(row, place, metric))]
            if len(cells) > 1:
                values = [cell.value for cell in cells]
                texts = ", ".join(f"{cell.system} {percent(cell.value)}" for cell in cells)
                spread = f"{100 * (max(values) - min(values)):.1f}"
                lines.append([texts, f"{place.title} {METRICS[metric].title}", spread])
    if not lines:
        return []
    header = ["variants that differ in their seed alone", "set", "spread (points)"]
    return ["## Seed noise", "", *markdown_table(header, lines)]


def steering_section(uses: Mapping[str, dict]) -> Lines:
    """Return a table per variant of what its steering does (see `experts.summarise`)."""
    lines = []
    for variant, use in uses.items():
        columns = [
            [str(layer) for layer in use["layers"]],
            *([number(value, decimals) for value in use[name]] for name, decimals in STEERING),
            [f"{percent(max(gates))} %" for gates in use["mean_gates"]],
        ]
        header = [
            "layer", "scale", "rms of steering / rms of layer output", "experts in use a frame",
            "experts in use over all frames", "largest mean gate",
        ]  # fmt: skip
        body = [list(line) for line in zip(*columns, strict=True)]
        lines += ["", f"{variant}: {use['frames']:,} encoder frames of {use['utterances']} utterances.", ""]
        lines += markdown_table(header, body)
    if not lines:
        return []
    explained = (
        "Experts in use: exp of the entropy of the gates; 1 is a single expert, all of them is even use."
    )
    return ["## Steering", "", explained, *lines]


def preservation_section(
    comparison: Comparison, configs: Mapping[str, VariantConfig], text_tasks: Mapping[str, dict]
) -> Lines:
    """Return whether training left encoder and LLM unchanged, and what the LLM can do with text."""
    hashes = {
        name: timing["frozen"].values() for name, timing in comparison.timing.items() if "frozen" in timing
    }
    same = [name for name, parts in hashes.items() if all(part["before"] == part["after"] for part in parts)]
    adapted = [name for name in comparison.variants if name in configs and configs[name].llm_lora is not None]
    lines = []
    if same:
        names = ", ".join(same)
        lines += [f"SHA-256 of the frozen weights in memory, same before and after training: {names}.", ""]
    if adapted:
        lines += [f"Adapters inside the LLM change its answers to text, by design: {', '.join(adapted)}.", ""]
    if text_tasks:
        body = []
        for name, found in text_tasks.items():
            for task, score in found["tasks"].items():
                value, low, high = (percent(score[bound]) for bound in ("value", "low", "high"))
                llm = "the frozen LLM" if name == BASELINE else name
                body.append([llm, task, value, f"[{low}, {high}]", str(score["n"])])
        header = ["LLM", "held-out text task", "exact match %", "interval", "n"]
        protocols = dict.fromkeys(str(found["protocol"]) for found in text_tasks.values())
        lines += [*markdown_table(header, body), "", f"Protocol: {'; '.join(protocols)}."]
    return ["## Preservation", "", *lines] if lines else []


def worst_section(results: Mapping[str, Mapping[str, Result]]) -> Lines:
    """Return the utterances with the most errors, for every variant and set."""
    lines = []
    for system, corpora in results.items():
        body = []
        for corpus, result in corpora.items():
            for split, task, _ in scored(result, "own"):
                for row in worst(result, split, task, WORST).iter_rows(named=True):
                    asked = f"{row['prompt']} " if row["prompt"] else ""
                    texts = [shown(asked + row["reference"]), shown(row["hypothesis"])]
                    errors = f"{row['errors']} / {row['words']}"
                    body.append([row["source_id"], f"{corpus} {split}", errors, *texts])
        if body:
            header = ["utterance", "set", "errors / words", "said", "written"]
            name = html.escape(BASELINES.get(system, system))
            lines += [
                f"<details><summary>{name}</summary>",
                "",
                *markdown_table(header, body),
                "",
                "</details>",
                "",
            ]
    return ["## Worst cases", "", *lines] if lines else []


def shown(text: str) -> str:
    """Format text of a corpus or a model so that neither Markdown nor HTML acts on it."""
    return f"`{text.replace('`', chr(39))}`" if text.strip() else "(nothing)"
