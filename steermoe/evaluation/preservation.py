"""Score the LLM on text tasks: what adapters inside it change."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.progress import track

from steermoe.config import Evaluation, Generation
from steermoe.evaluation.normalizers import normalizer
from steermoe.evaluation.significance import bootstrap_interval
from steermoe.models.generation import answer_texts, describe
from steermoe.models.steermoe import SteerMoE

TEXT_TASKS = "text_tasks.jsonl"  # in the LLM's folder; a line: {"task", "prompt", "target"}
BATCH = 32  # prompts decoded together


def text_tasks(model: SteerMoE, settings: Evaluation, generation: Generation, seed: int) -> dict | None:
    """Score the LLM's answers to its held-out text tasks by exact match; None if it comes without text tasks.

    Returns:
        {"tasks": {<task>: {n, value, low, high}}, "protocol": how}
    """
    path = Path(model.config.llm.path) / TEXT_TASKS
    if not path.is_file():
        return None
    items = sorted(read_text_tasks(path), key=lambda item: len(item["prompt"]))
    normalize = normalizer(settings.normalizer)
    hits: dict[str, list[float]] = {}
    for start in track(range(0, len(items), BATCH), description="text tasks"):
        batch = items[start : start + BATCH]
        prompts = [model.tokenizer.encode(item["prompt"], add_special_tokens=False) for item in batch]
        answers = answer_texts(model.llm, model.tokenizer, prompts, generation, seed)
        for item, answer in zip(batch, answers, strict=True):
            right = normalize(answer) == normalize(item["target"])
            hits.setdefault(item["task"], []).append(float(right))
    tasks = {}
    for task in sorted(hits):
        counts = np.array(hits[task]), np.ones(len(hits[task]))
        interval = bootstrap_interval(counts, settings.bootstrap_samples, settings.confidence, seed)
        tasks[task] = {"n": len(hits[task]), **asdict(interval)}
    protocol = (
        f"exact match, normaliser {settings.normalizer}, {describe(generation, seed)}, "
        f"{100 * settings.confidence:g} % percentile bootstrap over items, "
        f"{settings.bootstrap_samples} resamples, seed {seed}"
    )
    return {"tasks": tasks, "protocol": protocol}


def read_text_tasks(path: Path) -> list[dict[str, str]]:
    """Read a file of text tasks; ValueError names file and line of a bad one."""
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            item = json.loads(line)
            items.append({key: str(item[key]) for key in ("task", "prompt", "target")})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: found {line[:80]!r}, expected an object with task, prompt and target"
            ) from error
    return items
