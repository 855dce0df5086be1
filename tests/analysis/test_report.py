import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from steermoe.analysis import report
from steermoe.analysis.comparison import Comparison, compare
from steermoe.analysis.report import p_value, printed
from steermoe.config import Evaluation
from steermoe.evaluation.predictions import read_results, read_text_tasks
from steermoe.evaluation.significance import Difference

VARIANTS = ["linear", "steermoe", "lora", "steermoe-seed2"]
USE = {
    "layers": ["0", "2"], "experts": [2, 2], "utterances": 3, "frames": 1200, "mean_gates": [[0.5, 0.5], [0.9, 0.1]],
    "entropy": [0.69, 0.33], "effective_experts": [2.0, 1.39], "effective_load": [2.0, 1.38],
    "scales": [0.1, -0.25], "steer_to_residual": [0.001, 0.02],
}  # fmt: skip


@pytest.fixture(scope="module")
def comparison(evaluations: Path, timing: Path, settings: Evaluation) -> Comparison:
    return compare(VARIANTS, "linear", ["synthetic", "digits"], evaluations, timing, settings, seed=1)


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
        "system", "trainable parameters", "synthetic clean WER", "synthetic other WER", "digits WER",
        "synthetic clean accuracy", "s / step", "RTF",
    ]  # fmt: skip
    for row, line in zip(comparison.rows, lines, strict=True):
        assert line[0] == row.title and line[4] == "not available"
        cell = comparison.cell(row, comparison.sets[0], "wer")
        assert cell is not None
        expected = f"{100 * cell.value:.1f}<br>[{100 * cell.low:.1f}, {100 * cell.high:.1f}]"
        if cell.against is not None:
            expected += f"<br>p {p_value(cell.against)}"
        assert line[2] == expected
        assert (line[1] != "-") == (row.trainable is not None)
    assert lines[0][5] == "-"  # the encoder's own decoder answers no questions


def test_texts_that_are_empty_or_cut_are_told_of_each_system(evaluations: Path) -> None:
    results = read_results(evaluations)
    assert report.texts_section(results) == []
    found = results["linear"]["synthetic"]
    counts = {"n": 60, "empty_references": 1, "references_beyond_limit": 3, "answers_cut": 2}
    protocol = found.summary["protocol"] | {"texts": {"clean": {"transcribe": counts, "answer": {"n": 30}}}}
    told = {"linear": {"synthetic": replace(found, summary=found.summary | {"protocol": protocol})}}
    [line] = report.texts_section(results | told)[2:]
    assert "`linear`: synthetic clean (transcribe): of 60" in line
    assert all(
        words in line for words in ("1 are empty", "3 are longer than generation.max_new_tokens", "2 answers")
    )


def in_chinese(comparison: Comparison) -> Comparison:
    """The comparison as it is where words cannot be told apart: `synthetic clean` has no WER."""
    kept = [c for c in comparison.cells if (c.split, c.metric) != ("clean", "wer")]
    return replace(comparison, cells=kept)


def test_a_set_is_shown_in_its_own_metric(comparison: Comparison) -> None:
    chinese = in_chinese(comparison)
    main, further, *_ = tables(page(chinese))
    assert main[0][2:6] == [
        "synthetic clean CER", "synthetic other WER", "digits WER", "synthetic clean accuracy"
    ]  # fmt: skip
    assert "synthetic clean CER" not in further[0] and "synthetic other CER" in further[0]
    cell = chinese.cell(chinese.rows[0], chinese.sets[0], "cer")
    assert cell is not None and main[2][2].startswith(f"{100 * cell.value:.1f}<br>[")


def test_tables_are_rectangular_whatever_the_texts_hold(
    comparison: Comparison, evaluations: Path, timing: Path
) -> None:
    results = {variant: of for variant, of in read_results(evaluations).items() if variant in VARIANTS}
    text = page(comparison, results=results)
    assert "`x" not in text  # a backtick of a hypothesis would end its code span
    for table in tables(text):
        assert {len(line) for line in table} == {len(table[0])}


def test_the_protocol_stands_above_the_numbers(comparison: Comparison) -> None:
    text = page(comparison)
    before = text[: text.index("## Results")]
    for part in (
        "`folded`",
        "95 % percentile bootstrap",
        "200 resamples",
        "seed 1",
        "against `linear`",
        "all 21 comparisons of this report (Holm)",
    ):
        assert part in before
    assert "synthetic clean (transcribe): 60 (60 recordings)" in before
    assert "Corpus `digits` is not available: no archive" in before
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
    tables_shown = text.count(" system ")
    assert (tables_shown == 1) == (width >= 120)
    assert all(len(line) <= width for line in text.splitlines())
    assert all(line[-1] in "┓┃┩│┤┘" for line in text.splitlines() if line[0] in "┏┃┡│├└")
    words = [word for row in comparison.rows for word in row.title.split()]
    words += ["parameters", "accuracy", "available"]
    assert all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) for word in words)
    numbers = re.findall(r"\[\d+\.\d, \d+\.\d\]", text)
    shown = [c for c in comparison.cells if c.metric in ("wer", "accuracy")]
    assert len(numbers) == len(shown)


@pytest.mark.parametrize(
    ("p", "is_bound", "corrected", "text"),
    [
        (0.0004, False, None, "< 0.001"),
        (0.01, False, 0.0496, "0.050"),
        (1.0, False, 1.0, "1.000"),
        (1 / 1000, True, None, "≤ 0.001"),
        (1 / 1001, True, None, "≤ 0.001"),
        (1 / 10001, True, None, "≤ 0.0001"),
        (1 / 10001, True, 132 / 10001, "≤ 0.0132"),
    ],
)
def test_p_values_end_where_the_resamples_do(
    p: float, is_bound: bool, corrected: float | None, text: str
) -> None:
    assert p_value(Difference(-0.1, -0.2, 0.0, p, is_bound, corrected)) == text


def test_preservation_tells_whose_weights_are_the_same(
    comparison: Comparison, evaluations: Path, tiny_variant
) -> None:
    configs = {"linear": tiny_variant("linear"), "lora": tiny_variant("linear+llm_lora")}
    tasks = read_text_tasks(evaluations, VARIANTS)
    assert tasks.keys() == {"baseline"}
    lines = report.preservation_section(comparison, configs, tasks | {"lora": tasks["baseline"]})
    assert "same before and after training: linear, steermoe, lora." in lines[2]
    assert lines[4].endswith("by design: lora.")
    [table] = tables("\n".join(lines))
    assert table[2] == ["the frozen LLM", "repeat", "98.0", "[94.0, 100.0]", "50"]
    assert [line[0] for line in table[2:]] == ["the frozen LLM", "lora"]
    changed = comparison.timing["lora"] | {"frozen": {"llm": {"before": "1a", "after": "2b"}}}
    other = replace(comparison, timing=comparison.timing | {"lora": changed})
    assert "lora" not in report.preservation_section(other, {}, {})[2]
    assert report.preservation_section(replace(comparison, timing={}), {}, {}) == []


def test_seed_noise_groups_variants_that_differ_in_the_seed_alone(
    comparison: Comparison, tiny_variant
) -> None:
    configs = {
        "linear": tiny_variant("linear"),
        "steermoe": tiny_variant("steering"),
        "steermoe-seed2": tiny_variant("steering", {"seed": 6, "name": "steermoe-seed2"}),
        "lora": tiny_variant("lora"),
    }
    [table] = tables("\n".join(report.seed_section(comparison, configs)))
    assert [line[1] for line in table[2:]] == ["synthetic clean WER", "synthetic other WER"]
    rows = [row for row in comparison.rows if row.kind == "variant" and row.system.startswith("steermoe")]
    a, b = (comparison.cell(row, comparison.sets[0], "wer") for row in rows)
    assert a is not None and b is not None
    assert table[2][2] == f"{100 * abs(a.value - b.value):.1f}"
    configs["steermoe-seed2"] = tiny_variant("steering", {"seed": 6, "steering.num_experts": 2})
    assert report.seed_section(comparison, configs) == []


def test_a_comparison_of_nothing_is_still_a_report(
    evaluations: Path, timing: Path, settings: Evaluation
) -> None:
    empty = compare(["linear"], "linear", ["digits"], evaluations, timing, settings, seed=1)
    text = page(empty)
    assert "Corpus `digits` is not available: no archive" in text and "There is no other variant." in text
