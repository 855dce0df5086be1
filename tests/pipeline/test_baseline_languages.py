"""A corpus in languages that the encoder's own decoder does not know, through the real baseline to the report."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from ruamel.yaml import YAML

from pipeline import baseline
from steermoe.analysis import plots
from steermoe.analysis.comparison import compare
from steermoe.analysis.report import main_table
from steermoe.audio.io import RATE, encode_flac
from steermoe.config import Evaluation
from steermoe.data.shards import read_rows
from steermoe.evaluation.evaluator import measure
from steermoe.evaluation.predictions import System, batchwise, read_result, summarise, write_result
from tests.data.conftest import write_shards
from tests.evaluation.whisper import save_multilingual

ROOT = Path(__file__).parents[2]
LANGUAGES = {"train": ["en"] * 4, "clean": ["en", "ast", "de", "ckb", "ast"], "other": ["ckb"] * 3}


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory, tiny_llm_dir: Path) -> Path:
    """The shipped configuration over a tiny multilingual Whisper and a tiny LLM."""
    folder = tmp_path_factory.mktemp("languages")
    save_multilingual(folder / "whisper", tiny_llm_dir)
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / "configs", folder / "configs")
    yaml, file = YAML(), folder / "configs" / "mini.yaml"
    tree: Any = yaml.load(file)
    tree["encoder"]["path"], tree["llm"]["path"] = str(folder / "whisper"), str(tiny_llm_dir)
    yaml.dump(tree, file)
    return folder / "params.yaml"


def row(split: str, number: int, language: str, question: str = "") -> dict[str, Any]:
    sound = 0.1 * np.random.default_rng(number).standard_normal(RATE // 2)
    return {
        "source_id": f"{split}-{number}", "split": split, "speaker": "s", "language": language,
        "task": "answer" if question else "transcribe", "prompt": question,
        "transcript": f"words {number}", "target": f"words {number}",
        "audio": encode_flac(sound, RATE), "sample_rate": RATE, "seconds": 0.5,
    }  # fmt: skip


def run_baseline(params: Path, tmp_path: Path, languages: dict[str, list[str]]) -> Path:
    """The evaluations of a corpus with these languages, a row each."""
    for split, of in languages.items():
        rows = [row(split, number, language) for number, language in enumerate(of)]
        rows += [row(split, 100 + number, language, "who?") for number, language in enumerate(of[:2])]
        write_shards(iter(rows), tmp_path / "shards", split, 100)
    out = tmp_path / "evaluations" / "baseline" / "synthetic"
    baseline.main("synthetic", tmp_path / "shards", out, params)
    return out


@pytest.fixture
def scored(params: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> tuple[Path, str]:
    """The baseline of LANGUAGES, and what was told on the way."""
    return run_baseline(params, tmp_path, LANGUAGES), capsys.readouterr().err


def test_rows_in_unknown_languages_are_left_to_the_floors(scored: tuple[Path, str]) -> None:
    out, told = scored
    summary = read_result(out / "encoder").summary
    assert summary["own"].keys() == {"clean"} and summary["own"]["clean"]["transcribe"]["n"] == 2
    cascade = read_result(out / "cascade").summary
    assert {split: of["answer"]["n"] for split, of in cascade["own"].items()} == {"clean": 1}
    assert "its transcript to the LLM: greedy" in cascade["protocol"]["decoding"]
    assert read_result(out / "encoder").frame["language"].to_list() == ["en", "de"]
    left_out = "6 utterances in languages that it does not know (ckb: 4, ast: 2)"
    assert summary["protocol"]["decoding"].endswith(f"; not over {left_out}")
    lines = [line for line in told.splitlines() if "does not know" in line]
    assert lines == [
        f"synthetic: encoder is not scored on {left_out}, of 8",
        "synthetic: cascade is not scored on 3 utterances in languages that it does not know (ckb: 2, ast: 1), of 4",
    ]
    for floor in ("text-only", "constant"):
        counts = {
            split: of["transcribe"]["n"] for split, of in read_result(out / floor).summary["own"].items()
        }
        assert counts == {"clean": 5, "other": 3}


def test_nothing_but_unknown_languages_gives_no_result(
    params: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = run_baseline(params, tmp_path, {"train": ["en"], "clean": ["ckb"] * 2, "other": ["ast"]})
    assert not (out / "encoder").exists() and (out / "constant" / "metrics.json").exists()
    assert "(ckb: 2, ast: 1), of 3" in capsys.readouterr().err


def test_a_figure_over_fewer_rows_says_over_how_many(
    scored: tuple[Path, str], tmp_path: Path, tiny_variant
) -> None:
    """A variant is scored on all rows."""
    settings = Evaluation(
        normalizer="folded",
        max_batch_seconds=5.0,
        bootstrap_samples=100,
        confidence=0.95,
        normalizers={},
        bootstrap_unit="auto",
    )
    evaluations = scored[0].parents[1]
    variant = System(batchwise(lambda rows: rows["target"].to_list()), "as it is", "cpu")
    found = measure(variant, read_rows(tmp_path / "shards", ["clean", "other"]), settings, 1)
    write_result(evaluations / "linear" / "synthetic", found, summarise(found, settings))
    compared = compare(
        {"linear": tiny_variant("linear")},
        "linear",
        ["synthetic"],
        evaluations,
        evaluations,
        settings,
        seed=1,
    )
    header, lines = main_table(compared, "\n")
    column = header.index("synthetic clean WER")
    of = {line[0]: line[column] for line in lines}
    assert (
        of["encoder's own decoder"].endswith("]\nn = 2") and "n =" not in of["linear"] + of["constant text"]
    )
    headline = json.loads(json.dumps(compared.headline()))
    assert headline["baseline/encoder"]["synthetic"]["clean"]["n"] == 2
    assert "n" not in headline["linear"]["synthetic"]["clean"]
    axes = Figure().subplots()
    plots.bars(axes, compared, compared.rows, compared.sets[0])
    assert sum(text.get_text().endswith(", n = 2") for text in axes.texts) == 1
