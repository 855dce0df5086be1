import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steermoe.config import Evaluation, Generation
from steermoe.evaluation import preservation
from steermoe.models.generation import answer_texts
from steermoe.models.steermoe import SteerMoE


def test_text_tasks_are_scored_by_exact_match(
    tiny_variant: Callable[..., Any],
    settings: Evaluation,
    generation: Generation,
    tmp_path: Path,
    tiny_llm_dir: Path,
) -> None:
    model = SteerMoE.from_config(tiny_variant("linear"))
    prompts = ["the cat", "a dog runs", "one two"]
    ids = [model.tokenizer(prompt)["input_ids"] for prompt in prompts]
    answers = answer_texts(model.llm, model.tokenizer, ids, generation, seed=0)
    items = [
        {"task": "repeat", "prompt": prompt, "target": answer}
        for prompt, answer in zip(prompts, [answers[0].upper(), answers[1], "wrong"], strict=True)
    ]
    items.append({"task": "question", "prompt": "the cat", "target": answers[0]})
    for file in tiny_llm_dir.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / preservation.TEXT_TASKS).unlink()
    (tmp_path / preservation.TEXT_TASKS).write_text("".join(json.dumps(item) + "\n" for item in items))
    found = preservation.text_tasks(
        SteerMoE.from_config(tiny_variant("linear", {"llm.path": str(tmp_path)})),
        settings,
        generation,
        seed=0,
    )
    assert found is not None and "greedy, at most 6 new tokens" in found["protocol"]
    assert found["tasks"]["repeat"]["n"] == 3 and found["tasks"]["repeat"]["value"] == pytest.approx(2 / 3)
    assert found["tasks"]["question"] == {"n": 1, "value": 1.0, "low": 1.0, "high": 1.0}


def test_a_bad_line_of_the_text_tasks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text_tasks.jsonl"
    path.write_text('{"task": "repeat", "prompt": "a", "target": "a"}\n{"task": "repeat"}\n')
    with pytest.raises(ValueError, match=r"text_tasks.jsonl, line 2: found .* expected an object with task"):
        preservation.read_text_tasks(path)
