import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from steermoe.analysis import report
from steermoe.analysis.comparison import Comparison, compare
from steermoe.analysis.report import p_value, printed
from steermoe.config import Evaluation, VariantConfig
from steermoe.evaluation.predictions import read_results, read_text_tasks

VARIANTS = ["linear", "steermoe", "lora", "steermoe-seed2"]
USE = {
    "layers": ["0", "2"], "experts": [2, 2], "utterances": 3, "frames": 1200, "mean_gates": [[0.5, 0.5], [0.9, 0.1]],
    "entropy": [0.69, 0.33], "effective_experts": [2.0, 1.39], "effective_load": [2.0, 1.38],
    "scales": [0.1, -0.25], "steer_to_residual": [0.001, 0.02],
}  # fmt: skip


@pytest.fixture(scope="module")
def comparison(
    configs: dict[str, VariantConfig], evaluations: Path, timing: Path, settings: Evaluation
) -> Comparison:
    return compare(configs, "linear", ["synthetic", "digits"], evaluations, timing, settings, seed=1)


def page(comparison: Comparison, **given: dict) -> str:
    parts = ("captions", "results", "configs", "uses", "text_tasks")
    return report.markdown(comparison, *(given.get(name, {}) for name in parts))


def tables(text: str) -> list[list[list[str]]]:
    """Every Markdown table as lines of cells."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def test_every_number_of_the_main_table_is_the_comparisons(comparison: Comparison) -> None:
    header, _, *lines = tables(page(comparison))[0]
    assert header == [
        "system", "trainable parameters", "synthetic clean WER", "synthetic other WER", "synthetic clean accuracy",
        "cut", "s / step", "RTF",
    ]  # fmt: skip
    for row, line in zip(comparison.rows, lines, strict=True):
        assert line[0] == row.title
        assert (line[1] != "-") == (row.trainable is not None)
        assert line[5] == ("0" if row.kind == "variant" else "-")
        cell = comparison.cell(row, comparison.sets[0], "wer")
        if cell is None:
            assert row.system == "baseline/cascade" and line[2] == "-" != line[4]
            continue
        expected = f"{100 * cell.value:.1f}"
        if row.kind == "seeds":
            expected += f" ({100 * min(cell.seeds):.1f}-{100 * max(cell.seeds):.1f})"
        expected += f"<br>[{100 * cell.low:.1f}, {100 * cell.high:.1f}]"
        if cell.against is not None:
            expected += f"<br>p {p_value(cell.against.corrected, cell.against.is_bound)}"
        assert line[2] == expected
    assert lines[0][4] == "-"  # the encoder's own decoder answers no questions


def test_differences_show_both_p_values(comparison: Comparison) -> None:
    [*_, table] = [table for table in tables(page(comparison)) if table[0][-2:] == ["p (Holm)", "n"]]
    assert {line[0] for line in table[2:]} == {"steermoe, mean of 2 seeds", "lora"} and len(table) == 2 + 6
    tested = [cell.against for cell in comparison.cells if cell.against is not None]
    shown = {(line[4], line[5]) for line in table[2:]}
    assert shown == {(p_value(a.p, a.is_bound), p_value(a.corrected, a.is_bound)) for a in tested}


def test_languages_of_a_corpus_have_a_table_of_their_own(comparison: Comparison) -> None:
    clean, other, asked = comparison.sets
    french = replace(other, language="fr")
    sets = [replace(clean, language="en"), french, replace(asked, language="en")]
    of = dict(zip(comparison.sets, sets, strict=True))
    cells = [replace(cell, place=of[cell.place]) for cell in comparison.cells]
    text = page(replace(comparison, sets=sets, cells=cells))
    assert "synthetic other WER" not in tables(text)[0][0]
    [table, *_] = tables(text[text.index("## Languages of synthetic") :])
    assert table[0] == ["system", "en: synthetic clean WER", "fr: synthetic other WER"]
    systems = [
        "encoder's own decoder",
        "linear",
        "steermoe, mean of 2 seeds",
        "steermoe",
        "steermoe-seed2",
        "lora",
    ]
    assert [line[0] for line in table[2:]] == systems
    cell = comparison.cell(comparison.rows[0], other, "wer")
    assert cell is not None and table[2][2].startswith(f"{100 * cell.value:.1f}<br>[")


def test_texts_that_are_empty_or_cut_are_told_of_each_system(evaluations: Path) -> None:
    results = read_results(evaluations)
    assert report.texts_section(results) == []
    found = results["linear"]["synthetic"]
    counts = {"n": 60, "empty_references": 1, "references_beyond_limit": 3, "answers_cut": 2}
    protocol = found.summary["protocol"] | {"texts": {"clean": {"transcribe": counts, "answer": {"n": 30}}}}
    told = {"linear": {"synthetic": replace(found, summary=found.summary | {"protocol": protocol})}}
    [line] = report.texts_section(results | told)
    assert "`linear`: synthetic clean (transcribe): of 60" in line
    assert all(
        words in line for words in ("1 are empty", "3 are longer than generation.max_new_tokens", "2 answers")
    )


def test_a_set_is_shown_in_its_own_metric(
    configs: dict[str, VariantConfig], evaluations: Path, timing: Path, settings: Evaluation, tmp_path: Path
) -> None:
    """Where words cannot be told apart there is no WER."""
    shutil.copytree(evaluations, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("**/synthetic/**/metrics.json"):
        summary = json.loads(path.read_text())
        for audio in ("own", "shuffled"):
            summary.get(audio, {}).get("clean", {}).get("transcribe", {}).pop("wer", None)
        path.write_text(json.dumps(summary))
    chinese = compare(configs, "linear", ["synthetic"], tmp_path, timing, settings, seed=1)
    text = page(chinese)
    main = tables(text)[0]
    assert main[0][2:5] == ["synthetic clean CER", "synthetic other WER", "synthetic clean accuracy"]
    cell = chinese.cell(chinese.rows[0], chinese.sets[0], "cer")
    assert cell is not None and main[2][2].startswith(f"{100 * cell.value:.1f}<br>[")
    further = tables(text[text.index("## Further metrics") :])
    assert [table[0][1:] for table in further[:2]] == [
        ["synthetic other CER"],
        ["synthetic clean exact match", "synthetic other exact match"],
    ]


def test_tables_are_rectangular_whatever_the_texts_hold(
    comparison: Comparison, evaluations: Path, timing: Path
) -> None:
    results = {variant: of for variant, of in read_results(evaluations).items() if variant in VARIANTS}
    text = page(comparison, results=results)
    assert "`x" not in text  # a backtick of a hypothesis would end its code span
    for table in tables(text):
        assert {len(line) for line in table} == {len(table[0])}


def test_the_protocol_stands_below_the_table(comparison: Comparison) -> None:
    text = page(comparison)
    before = text[text.index("## How to read it") : text.index("## Differences")]
    for part in (
        "`folded`",
        "95 % percentile bootstrap",
        "200 resamples",
        "seed 1",
        "against `linear`",
        "6 comparisons of this report (Holm)",
    ):
        assert part in before
    assert "synthetic clean (transcribe): 60 (60 texts)" in before
    assert "Corpus digits is not available: no archive" in text[: text.index("## How")]
    assert "batches of 5 audio seconds" in before and "`LLM without audio`: as text-only does." in before
    whole = page(comparison, captions={"wer.png": "error rates"}, uses={"steermoe": USE})
    assert "![error rates](wer.png)" in whole
    [table] = tables(whole[whole.index("## Steering") :])[:1]
    assert [line[0] for line in table[2:]] == ["0", "2"]
    assert table[3] == ["2", "-0.250", "0.0200", "1.39", "1.38", "90.0 %"]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_printed_table_fits_any_terminal_and_breaks_no_word(comparison: Comparison, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(printed(comparison, width))
    text = console.export_text()
    assert (text.count(" system ") == 1) == (width >= 200)
    assert all(len(line) <= width for line in text.splitlines())
    assert all(line[-1] in "┓┃┩│┤┘" for line in text.splitlines() if line[0] in "┏┃┡│├└")
    words = [word for row in comparison.rows for word in row.title.split()]
    words += ["parameters", "accuracy"]
    assert all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) for word in words)
    numbers = re.findall(r"\[\d+\.\d, \d+\.\d\]", text)
    shown = [c for c in comparison.cells if c.metric in ("wer", "accuracy")]
    assert len(numbers) == len(shown)


@pytest.mark.parametrize(
    ("p", "is_bound", "text"),
    [
        (0.0004, False, "< 0.001"),
        (0.0496, False, "0.050"),
        (1.0, False, "1.000"),
        (1 / 1000, True, "≤ 0.001"),
        (1 / 1001, True, "≤ 0.001"),
        (1 / 10001, True, "≤ 0.0001"),
        (132 / 10001, True, "≤ 0.0132"),
    ],
)
def test_p_values_end_where_the_resamples_do(p: float, is_bound: bool, text: str) -> None:
    assert p_value(p, is_bound) == text


def test_preservation_tells_whose_weights_are_the_same(
    comparison: Comparison, evaluations: Path, tiny_variant
) -> None:
    configs = {"linear": tiny_variant("linear"), "lora": tiny_variant("linear+llm_lora")}
    tasks = read_text_tasks(evaluations, VARIANTS)
    assert tasks.keys() == {"baseline"}
    lines = report.preservation_section(comparison, configs, tasks | {"lora": tasks["baseline"]})
    assert "same before and after training: linear, steermoe, lora." in lines[0]
    assert lines[2].endswith("by design: lora.")
    [table] = tables("\n".join(lines))
    assert table[2] == ["the frozen LLM", "repeat", "98.0", "[94.0, 100.0]", "50"]
    assert [line[0] for line in table[2:]] == ["the frozen LLM", "lora"]
    changed = comparison.timing["lora"] | {"frozen": {"llm": {"before": "1a", "after": "2b"}}}
    other = replace(comparison, timing=comparison.timing | {"lora": changed})
    assert "lora" not in report.preservation_section(other, {}, {})[0]
    assert report.preservation_section(replace(comparison, timing={}), {}, {}) == []


def test_a_comparison_of_nothing_is_still_a_report(
    configs: dict[str, VariantConfig], evaluations: Path, timing: Path, settings: Evaluation
) -> None:
    alone = {"linear": configs["linear"]}
    empty = compare(alone, "linear", ["digits"], evaluations, timing, settings, seed=1)
    text = page(empty)
    assert "Corpus digits is not available: no archive" in text and "There is no other configuration." in text
