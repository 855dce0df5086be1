"""Evaluations as `dvc repro` leaves them, of systems that know the answers more or less well."""

import json
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from steermoe.audio.io import RATE, encode_flac
from steermoe.config import Evaluation, VariantConfig
from steermoe.data.schema import SCHEMA
from steermoe.data.shards import DEFAULTS
from steermoe.evaluation.evaluator import measure
from steermoe.evaluation.predictions import (
    System,
    batchwise,
    summarise,
    write_json,
    write_result,
    write_skipped,
)

WORDS = ["ann", "bob", "has", "sees", "two", "three", "red", "blue", "cats", "dogs", "houses"]
SKILLS = {"steermoe": 0.95, "linear": 0.7, "lora": 0.9, "steermoe-seed2": 0.93}  # chance to get a word right


@pytest.fixture(scope="session")
def settings() -> Evaluation:
    return Evaluation(
        normalizer="folded",
        max_batch_seconds=5.0,
        bootstrap_samples=200,
        confidence=0.95,
        normalizers={},
        bootstrap_unit="auto",
    )


@pytest.fixture(scope="session")
def configs(tiny_variant) -> dict[str, VariantConfig]:
    """Of the variants of SKILLS; two differ in name and seed alone."""
    methods = {"linear": "linear", "steermoe": "steering", "lora": "lora", "steermoe-seed2": "steering"}
    return {
        name: tiny_variant(method, {"name": name, "seed": 6 if name == "steermoe-seed2" else 5})
        for name, method in methods.items()
    }


@pytest.fixture(scope="session")
def utterances() -> pl.DataFrame:
    """Splits `clean` (60 to transcribe, 30 to answer) and `other` (40), 0.2 s of noise each."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(130):
        asked = 60 <= number < 90
        text = " ".join(rng.choice(WORDS, size=6))
        rows.append(
            {
                "source_id": f"u{number:03d}", "split": "clean" if number < 90 else "other", "speaker": "s",
                "task": "answer" if asked else "transcribe", "prompt": "who | sees?" if asked else "",
                "transcript": text, "target": text.split()[0] if asked else text,
                "audio": encode_flac(0.1 * rng.standard_normal(RATE // 5), RATE), "sample_rate": RATE,
                "seconds": 0.2,
            }
        )  # fmt: skip
    return pl.DataFrame([DEFAULTS | row for row in rows], schema=SCHEMA)


def knowing(rows: pl.DataFrame, name: str, skill: float) -> System:
    """A system that knows every recording, but loses words."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    known = {
        audio: " ".join(word if rng.random() < skill else "`x|" for word in target.split())
        for audio, target in rows.select("audio", "target").iter_rows()
    }
    return System(
        batchwise(lambda batch: [known[audio] for audio in batch["audio"]]), f"as {name} does", "cpu"
    )


@pytest.fixture(scope="session")
def evaluations(
    utterances: pl.DataFrame, settings: Evaluation, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Four variants and four baselines on `synthetic`; `digits` was skipped."""
    root = tmp_path_factory.mktemp("evaluations")
    for variant, skill in SKILLS.items():
        found = measure(knowing(utterances, variant, skill), utterances, settings, 1, ("own", "shuffled"))
        write_result(root / variant / "synthetic", found, summarise(found, settings))
        write_skipped(root / variant / "digits", "no archive")
    spoken, asked = (utterances.filter(task=task) for task in ("transcribe", "answer"))
    for name, rows, skill in (
        ("encoder", spoken, 0.97), ("cascade", asked, 0.9), ("text-only", utterances, 0.1),
        ("constant", utterances, 0.1),
    ):  # fmt: skip
        found = measure(knowing(rows, name, skill), rows, settings, 1)
        write_result(root / "baseline" / "synthetic" / name, found, summarise(found, settings))
    scores = {"repeat": {"n": 50, "value": 0.98, "low": 0.94, "high": 1.0}}
    write_json(root / "baseline" / "synthetic" / "text_tasks.json", {"tasks": scores, "protocol": "exact"})
    return root


@pytest.fixture(scope="session")
def timing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training measured, for all variants but one; on dev the order of the variants is another than on test."""
    root = tmp_path_factory.mktemp("timing")
    for variant, loss in {"steermoe": 0.5, "linear": 0.3, "lora": 0.4}.items():
        parts = {"projection": 1000, "router": 200} if variant == "steermoe" else {"projection": 1000}
        found = {"trainable_parameters": parts, "seconds_per_step": 0.25, "steps": 100, "best_step": 80}
        found |= {"best_dev_loss": loss, "frozen": {"llm": {"before": "1a", "after": "1a"}}}
        (root / f"{variant}.json").write_text(json.dumps(found))
    return root
