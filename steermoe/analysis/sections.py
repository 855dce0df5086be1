"""Sections of the report beside the tables: seed noise, steering, preservation, worst cases."""

import html
from collections.abc import Mapping

from steermoe.analysis.comparison import BASELINES, Comparison, scored, worst
from steermoe.analysis.report import NONE, Lines, markdown_table, number, percent
from steermoe.config import VariantConfig
from steermoe.evaluation.metrics import METRICS
from steermoe.evaluation.predictions import BASELINE, Result, remarks

WORST = 3  # utterances shown for each variant and set


def texts(results: Mapping[str, Mapping[str, Result]]) -> Lines:
    """Empty references, references beyond the limit of tokens and answers that it cut, for every system and set."""
    lines = [
        f"- `{system}`: {remark}"
        for system, of in results.items()
        for corpus, result in of.items()
        if result.summary
        for remark in remarks(corpus, result.summary)
    ]
    return ["## Texts that are empty or cut", "", *lines] if lines else []


def training(comparison: Comparison) -> Lines:
    """Where the trained parameters sit, and how long training took."""
    lines = []
    for variant, timing in comparison.timing.items():
        parts = ", ".join(
            f"{part} {count:,}" for part, count in timing.get("trainable_parameters", {}).items()
        )
        steps = [str(timing.get(name, NONE)) for name in ("steps", "best_step")]
        lines.append([variant, parts or NONE, *steps, number(timing.get("seconds_per_step"), 2)])
    if not lines:
        return []
    header = ["variant", "trainable parameters", "steps", "best step", "s / step"]
    return ["## Training", "", *markdown_table(header, lines)]


def seed_noise(comparison: Comparison, configs: Mapping[str, VariantConfig]) -> Lines:
    """Error rates of variants that differ in nothing but their seed: what a difference between variants stands beside."""
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
                lines.append(
                    [
                        texts,
                        f"{place.title} {METRICS[metric].title}",
                        f"{100 * (max(values) - min(values)):.1f}",
                    ]
                )
    if not lines:
        return []
    header = ["variants that differ in their seed alone", "set", "spread (points)"]
    return ["## Seed noise", "", *markdown_table(header, lines)]


def steering(uses: Mapping[str, dict]) -> Lines:
    """A table a variant of what its steering does; see `steermoe.analysis.steering.collect` for the columns."""
    lines = []
    for variant, use in uses.items():
        columns = [
            [str(layer) for layer in use["layers"]],
            [number(value, 3) for value in use["scales"]],
            [number(value, 4) for value in use["steer_to_residual"]],
            [number(value, 2) for value in use["effective_experts"]],
            [number(value, 2) for value in use["effective_load"]],
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


def preservation(
    comparison: Comparison, configs: Mapping[str, VariantConfig], text_tasks: Mapping[str, dict]
) -> Lines:
    """Whether training left encoder and LLM as they were, and what the LLM can do with text."""
    hashes = {
        variant: timing["frozen"].values()
        for variant, timing in comparison.timing.items()
        if "frozen" in timing
    }
    same = [variant for variant, of in hashes.items() if all(each["before"] == each["after"] for each in of)]
    adapted = [
        variant
        for variant in comparison.variants
        if variant in configs and configs[variant].llm_lora is not None
    ]
    lines = []
    if same:
        lines += [
            f"SHA-256 of the frozen weights in memory, same before and after training: {', '.join(same)}.",
            "",
        ]
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


def worst_cases(results: Mapping[str, Mapping[str, Result]]) -> Lines:
    """The utterances with the most errors, for every variant and set."""
    lines = []
    for system, of in results.items():
        body = []
        for corpus, result in of.items():
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
    """Text of a corpus or a model as it is, whatever it holds that Markdown or HTML would act on."""
    return f"`{text.replace('`', chr(39))}`" if text.strip() else "(nothing)"
