"""The comparison as text: a table for the terminal, and a report in Markdown with all tables and plots."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from rich.console import Group
from rich.table import Table

from steermoe.analysis.comparison import Comparison, Row, Set, scored
from steermoe.config import VariantConfig
from steermoe.evaluation.metrics import METRICS
from steermoe.evaluation.predictions import BASELINE, Result, remarks

NONE = "-"
BORDER = 3  # of a column in the terminal: a line and a space on either side
PRINTED = (
    "Rates in %, with intervals; (a-b): range over seeds; p: against the reference variant, corrected (Holm); "
    "cut: answers that reached generation.max_new_tokens"
)
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
    # Headers and the names of systems are broken between words, cells between lines.
    first = max(20, *(len(word) for line in body for word in line[0].split()))
    others = max(len(part) for line in body for cell in line[1:] for part in cell.split("\n"))
    others = max(others, *(len(word) for words in header for word in words.split()))
    step = max(1, (width - first - BORDER - 1) // (others + BORDER))
    shown: list[Any] = [PRINTED, *missing(comparison)]
    for start in range(1, len(header), step):
        table = Table(show_lines=True)
        table.add_column(header[0], width=first)
        for words in header[start : start + step]:
            table.add_column(words, justify="right", width=others)
        for row, line in zip(comparison.rows, body, strict=True):
            style = None if row.kind in ("variant", "seeds") else "dim"
            table.add_row(line[0], *line[start : start + step], style=style)
        shown.append(table)
    return Group(*shown)


def main_table(comparison: Comparison, newline: str) -> tuple[Lines, list[Lines]]:
    """Return header and lines: trained parameters, the main sets in their own metrics, what was cut, and costs."""
    header, body = value_table(
        comparison, comparison.rows, [(p, p.metric) for p in comparison.main_sets()], newline
    )
    for row, line in zip(comparison.rows, body, strict=True):
        line.insert(1, NONE if row.trainable is None else f"{row.trainable:,}")
        cut = NONE if row.cut is None else str(row.cut)
        line += [cut, number(row.seconds_per_step, 2), number(row.real_time_factor, 3)]
    return [header[0], "trainable parameters", *header[1:], "cut", "s / step", "RTF"], body


def value_table(
    comparison: Comparison, rows: Sequence[Row], columns: Sequence[tuple[Set, str]], newline: str = "<br>"
) -> tuple[Lines, list[Lines]]:
    """Return header and lines: a metric of a set in each column."""
    titles = [f"{place.corpus} {place.split} {METRICS[metric].title}" for place, metric in columns]
    body = [
        [row.title, *(cell_text(comparison, row, *column, newline) for column in columns)] for row in rows
    ]
    return ["system", *titles], body


def cell_text(comparison: Comparison, row: Row, place: Set, metric: str, newline: str) -> str:
    """Return value, range over seeds, interval, the number of utterances where others have more, and p-value."""
    cell = comparison.cell(row, place, metric)
    if cell is None:
        return NONE
    seeds = f" ({percent(min(cell.seeds))}-{percent(max(cell.seeds))})" if cell.seeds else ""
    parts = [f"{percent(cell.value)}{seeds}", f"[{percent(cell.low)}, {percent(cell.high)}]"]
    if comparison.is_partial(cell):
        parts.append(f"n = {cell.n}")
    if cell.against is not None:
        parts.append(f"p {p_value(cell.against.corrected, cell.against.is_bound)}")
    return newline.join(parts)


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
    pictures = [f"![{caption}]({name})\n\n*{caption}*\n" for name, caption in captions.items()]
    sections = {
        "Results": [*markdown_table(*main_table(comparison, "<br>")), "", *missing(comparison)],
        "How to read it": how_to_read(comparison),
        "Pictures": pictures,
        **{
            f"Languages of {corpus}": languages(comparison, sets)
            for corpus, sets in comparison.by_language().items()
        },
        f"Differences from {comparison.reference}": differences(comparison),
        "Further metrics": further_metrics(comparison),
        "Texts that are empty or cut": texts_section(results),
        "Training": training_section(comparison),
        "Steering": steering_section(uses),
        "Preservation": preservation_section(comparison, configs, text_tasks),
        "Worst cases": worst_section(results),
    }
    lines = ["# Comparison"]
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body] if body else []
    return "\n".join(lines).rstrip() + "\n"


def missing(comparison: Comparison) -> Lines:
    """Return the corpora that are not available, and why."""
    return [f"Corpus {corpus} is not available: {reason}" for corpus, reason in comparison.missing.items()]


def how_to_read(comparison: Comparison) -> Lines:
    """Return the protocol of all numbers."""
    protocol, tests = comparison.protocol, sum(cell.against is not None for cell in comparison.cells)
    if not protocol:
        return []
    lines = [
        f"Rates in %, normaliser `{protocol['normalizer']}`; decoding: {protocol['decoding']}.",
        f"`[low, high]`: {protocol['interval']}, {protocol['bootstrap_samples']} resamples, seed {protocol['seed']}. "
        "It is about other speakers, texts or rows of the same kind, whichever is resampled, and never about other "
        "training seeds. Without width it means that all utterances agree, not that the value is certain.",
        f"`p`: two-sided paired bootstrap against `{comparison.reference}` on the same utterances, corrected for the "
        f"{tests} comparisons of this report (Holm); `≤`: no resample was as far off, so only this bound is known.",
        "`(a-b)`: lowest and highest run of a configuration with several seeds. Its mean is compared, not its runs. "
        "A difference between configurations that is no larger than such a range means nothing.",
        "`cut`: answers that reached `generation.max_new_tokens`, over all sets.",
        "`shuffled audio`: every row gets another row's audio; what is right then is a guess.",
    ]
    if any(map(comparison.is_partial, comparison.cells)):
        lines.append(
            "`n`: a figure over fewer utterances than the set has; it does not compare with the others."
        )
    if speed := comparison.speed:
        lines.append(
            "RTF: wall seconds for a second of audio over all splits, from audio file to text (decoding, features, "
            f"encoder, LLM), batches of {speed['max_batch_seconds']:g} audio seconds, {speed['device']}, "
            f"{speed['threads']} thread(s). It holds for the machine it was measured on."
        )
    sets = (f"{p.corpus} {p.split} ({p.task}): {p.n} ({p.clusters} {p.unit})" for p in comparison.sets)
    lines.append(f"Utterances, and what is resampled: {', '.join(sets)}.")
    lines += [f"`{row.title}`: {row.decoding}." for row in comparison.rows if row.decoding]
    return [f"- {line}" for line in lines]


def languages(comparison: Comparison, sets: Sequence[Set]) -> Lines:
    """Return a table of the error rates of one corpus by language: the variants, and the encoder's own decoder."""
    ordered = sorted(sets, key=lambda place: place.language)
    rows = [
        row
        for row in comparison.rows
        if row.kind in ("variant", "seeds", "decoder")
        and any(comparison.cell(row, p, p.metric) for p in sets)
    ]
    header, body = value_table(comparison, rows, [(place, place.metric) for place in ordered])
    titles = [f"{place.language}: {title}" for place, title in zip(ordered, header[1:], strict=True)]
    return markdown_table([header[0], *titles], body)


def further_metrics(comparison: Comparison) -> Lines:
    """Return a table for each metric with the sets that are not reported in it."""
    lines = []
    for name in METRICS:
        found = {cell.place for cell in comparison.cells if cell.metric == name != cell.place.metric}
        if columns := [(place, name) for place in comparison.sets if place in found]:
            lines += ["", *markdown_table(*value_table(comparison, comparison.rows, columns))]
    return lines[1:]


def differences(comparison: Comparison) -> Lines:
    """Return a table of configuration minus reference in percentage points, with interval and p-values."""
    body = []
    for row in comparison.rows:
        for place in comparison.sets:
            cell = comparison.cell(row, place, place.metric)
            if cell is not None and (against := cell.against) is not None:
                value, low, high = (f"{100 * x:+.1f}" for x in (against.value, against.low, against.high))
                p = [p_value(each, against.is_bound) for each in (against.p, against.corrected)]
                body.append([row.title, place.title, value, f"[{low}, {high}]", *p, str(cell.n)])
    if not body:
        return ["There is no other configuration."]
    return markdown_table(["system", "set", "difference (points)", "interval", "p", "p (Holm)", "n"], body)


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


def p_value(p: float | None, is_bound: bool) -> str:
    """Format a p-value; as a bound, never rounded down, where no more is known."""
    if p is None:
        return NONE
    if is_bound:
        return f"≤ {math.ceil(round(1e4 * p, 6)) / 1e4:g}"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def number(value: float | None, decimals: int) -> str:
    """Format a number; None is a dash."""
    return NONE if value is None else f"{value:.{decimals}f}"


def texts_section(results: Mapping[str, Mapping[str, Result]]) -> Lines:
    """Return what is empty, longer than the limit of tokens or cut by it, for every system and set."""
    found = (
        (system, c, r.summary) for system, corpora in results.items() for c, r in corpora.items() if r.summary
    )
    return [f"- `{system}`: {remark}" for system, c, summary in found for remark in remarks(c, summary)]


def training_section(comparison: Comparison) -> Lines:
    """Return the trained parameters by part, and the duration of training."""
    lines = []
    for variant, timing in comparison.timing.items():
        counts = timing.get("trainable_parameters", {})
        parts = ", ".join(f"{part} {count:,}" for part, count in counts.items())
        steps = [str(timing.get(name, NONE)) for name in ("steps", "best_step")]
        lines.append([variant, parts or NONE, *steps, number(timing.get("seconds_per_step"), 2)])
    header = ["variant", "trainable parameters", "steps", "best step", "s / step"]
    return markdown_table(header, lines) if lines else []


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
    explained = (
        "Experts in use: exp of the entropy of the gates; 1 is a single expert, all of them is even use."
    )
    return [explained, *lines] if lines else []


def preservation_section(
    comparison: Comparison, configs: Mapping[str, VariantConfig], text_tasks: Mapping[str, dict]
) -> Lines:
    """Return whether training left encoder and LLM unchanged, and what the LLM can do with text."""
    hashes = {
        name: timing["frozen"].values() for name, timing in comparison.timing.items() if "frozen" in timing
    }
    same = [name for name, parts in hashes.items() if all(part["before"] == part["after"] for part in parts)]
    adapted = [name for name, variant in configs.items() if variant.llm_lora is not None]
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
    return lines


def worst_section(results: Mapping[str, Mapping[str, Result]]) -> Lines:
    """Return the utterances with the most errors, for every variant and set; ties by source_id."""
    lines = []
    for system, corpora in results.items():
        body = []
        for corpus, result in corpora.items():
            for split, task, _ in scored(result, "own"):
                wrong = result.frame.filter(~pl.col("exact"), audio="own", split=split, task=task)
                worst = wrong.sort(["errors", "source_id"], descending=[True, False]).head(WORST)
                for row in worst.iter_rows(named=True):
                    texts = shown(f"{row['prompt']} {row['reference']}".strip()), shown(row["hypothesis"])
                    errors = f"{row['errors']} / {row['words']}"
                    body.append([row["source_id"], f"{corpus} {split}", errors, *texts])
        if body:
            table = markdown_table(["utterance", "set", "errors / words", "said", "written"], body)
            lines += [f"<details><summary>{html.escape(system)}</summary>", "", *table, "", "</details>", ""]
    return lines


def shown(text: str) -> str:
    """Format text of a corpus or a model so that neither Markdown nor HTML acts on it."""
    return f"`{text.replace('`', chr(39))}`" if text.strip() else "(nothing)"
