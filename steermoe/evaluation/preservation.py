"""Proof that encoder and LLM are untouched by training, and what the frozen LLM can do with text."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from steermoe.config import Evaluation, Generation
from steermoe.evaluation.normalizers import normalizer
from steermoe.evaluation.significance import bootstrap_interval
from steermoe.models import adapter
from steermoe.models.encoders import load_encoder, load_video_encoder
from steermoe.models.frozen import digest, frozen_weights
from steermoe.models.generation import answer_texts, describe
from steermoe.models.llm import load_llm
from steermoe.models.steermoe import SteerMoE

TEXT_TASKS = "text_tasks.jsonl"  # beside the LLM's weights; a line: {"task", "prompt", "target"}
BATCH = 32  # prompts decoded together
PROMPTS_PER_TASK = 4  # of the text tasks that join PROMPTS
PROMPTS = (  # whatever LLM it is, these are tokens that it knows
    "The capital of France is",
    "Write down what was said: the red house has two doors.",
    "Question: how many days has a week? Answer:",
    "1 2 3 4 5 6",
    "please transcribe the audio content into text: ",
    "Once upon a time there was",
    "def add(a, b):\n    return",
    "?",
)


@torch.inference_mode()
def check(model: SteerMoE, source: Path | str) -> dict:
    """Compare a trained model with base models loaded anew from where its configuration says.

    Args:
        model: loaded from `source`.
        source: its adapter; config.json there holds the hashes of the frozen weights at the end of training.

    Returns:
        {"weights": {encoder, llm, and video where there is one: {base, trained_against, now, identical}},
        "logits": {"prompts": how many, "identical": how many of them give the same logits in every bit,
        "largest_change": of a logit}, "adapted": whether the arm trains adapters inside the LLM}
    """
    base_llm, _ = load_llm(model.config.llm)
    base_encoder = load_encoder(model.config.encoder)
    base = {
        "encoder": digest(frozen_weights(base_encoder.model)),
        "llm": digest(frozen_weights(base_llm)),
    }
    if model.config.video is not None:
        base["video"] = digest(frozen_weights(load_video_encoder(model.config.video.encoder).model))
    after, now = adapter.read(source).frozen, model.frozen_hashes()
    weights = {
        part: {
            "base": base[part],
            "trained_against": after[part],
            "now": now[part],
            "identical": base[part] == after[part] == now[part],
        }
        for part in base
    }
    torch.nn.Module.to(base_llm, model.device)
    prompts = fixed_prompts(Path(model.config.llm.path))
    same, largest = 0, 0.0
    for prompt in prompts:
        ids = torch.tensor([model.tokenizer(prompt)["input_ids"]], device=model.device)
        now, before = model.llm(input_ids=ids).logits, base_llm(input_ids=ids).logits
        same += torch.equal(now, before)
        largest = max(largest, float((now.float() - before.float()).abs().max()))
    logits = {"prompts": len(prompts), "identical": same, "largest_change": largest}
    return {"adapted": model.config.llm_lora is not None, "weights": weights, "logits": logits}


def fixed_prompts(llm: Path) -> list[str]:
    """PROMPTS, and the first prompts of each of the LLM's own text tasks where it brings some."""
    prompts: list[str] = [*PROMPTS]
    if (llm / TEXT_TASKS).is_file():
        tasks: dict[str, list[str]] = {}
        for item in read_text_tasks(llm / TEXT_TASKS):
            tasks.setdefault(item["task"], []).append(item["prompt"])
        prompts += [prompt for found in tasks.values() for prompt in found[:PROMPTS_PER_TASK]]
    return prompts


def text_tasks(model: SteerMoE, settings: Evaluation, generation: Generation, seed: int) -> dict | None:
    """Exact match of the LLM's answers on its held-out text tasks; None where it brings none.

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
    """The lines of a text task file; ValueError naming file and line where one is not as it must be."""
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
