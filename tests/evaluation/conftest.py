"""Utterances of coloured noise with a text each, as the shards hold them."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from steermoe.audio.io import RATE, encode_flac
from steermoe.config import Evaluation, Generation
from steermoe.data.schema import SCHEMA

TEXTS = ["the cat runs", "a red dog", "two blue houses", "please sing", "one two three", "the tree is red"]


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
def generation(greedy: Callable[..., Generation]) -> Generation:
    return greedy(6)


@pytest.fixture(scope="session")
def utterances() -> pl.DataFrame:
    """Two splits, `clean` with 9 rows to transcribe and 3 to answer, `other` with 6; 0.3 to 1.6 s each."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(18):
        split, task = ("clean", "transcribe") if number < 12 else ("other", "transcribe")
        task = "answer" if number in (3, 7, 11) else task
        samples = int(rng.uniform(0.3, 1.6) * RATE)
        text = TEXTS[number % len(TEXTS)]
        waveform = 0.1 * rng.standard_normal(samples) * np.sin(np.arange(samples) / (20 + 9 * number))
        rows.append(
            {
                "source_id": f"u{number:02d}", "split": split, "speaker": "s", "language": "und", "task": task,
                "prompt": "what is red?" if task == "answer" else "", "transcript": text,
                "target": text.split()[-1] if task == "answer" else text, "answers": [], "choices": [],
                "audio": encode_flac(waveform, RATE), "sample_rate": RATE, "seconds": samples / RATE,
            }
        )  # fmt: skip
    return pl.DataFrame(rows, schema=SCHEMA)
