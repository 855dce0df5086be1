import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from steermoe.config import Evaluation, Generation
from steermoe.evaluation import preservation
from steermoe.models.generation import answer_texts
from steermoe.models.steermoe import SteerMoE


@pytest.fixture(params=["steering", "linear", "lora"])
def model(request: pytest.FixtureRequest, tiny_arm: Callable[..., Any]) -> SteerMoE:
    return SteerMoE.from_config(tiny_arm(request.param))


def test_an_untouched_model_is_identical(model: SteerMoE, tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in model.trainable_state_dict().values():
            parameter += 0.1
    model.save_pretrained(tmp_path)
    found = preservation.check(SteerMoE.from_pretrained(tmp_path), tmp_path)
    assert found["weights"]["encoder"]["identical"] and found["weights"]["llm"]["identical"]
    assert found["logits"]["prompts"] == found["logits"]["identical"] > len(preservation.PROMPTS)


def test_adapters_inside_the_llm_are_no_change_of_its_weights(
    tiny_arm: Callable[..., Any], tmp_path: Path
) -> None:
    model = SteerMoE.from_config(tiny_arm("linear+llm_lora"))
    with torch.no_grad():
        for parameter in model.parameter_groups()["llm_lora"]:
            parameter.normal_(std=0.5)
    model.save_pretrained(tmp_path)
    found = preservation.check(SteerMoE.from_pretrained(tmp_path), tmp_path)
    assert found["adapted"] and found["weights"]["llm"]["identical"]
    assert found["logits"]["identical"] == 0 and found["logits"]["largest_change"] > 0.01


@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_one_changed_weight_is_found(model: SteerMoE, tmp_path: Path, part: str) -> None:
    model.save_pretrained(tmp_path)
    frozen = {"llm": model.llm, "encoder": model.encoder.model}[part]
    next(p for p in frozen.parameters() if not p.requires_grad).view(-1)[5] += 1e-3
    found = preservation.check(model, tmp_path)
    identical = {name: of["identical"] for name, of in found["weights"].items()}
    assert identical == {name: name != part for name in ("encoder", "llm")}
    assert (found["logits"]["identical"] < found["logits"]["prompts"]) == (part == "llm")


def test_training_that_changed_the_llm_is_found_by_the_adapters_hashes(
    model: SteerMoE, tmp_path: Path
) -> None:
    embeddings = model.llm.get_input_embeddings().weight
    embeddings.view(-1)[5] += 1e-3
    model.save_pretrained(tmp_path)
    assert not preservation.check(model, tmp_path)["weights"]["llm"]["identical"]
    with torch.no_grad():
        embeddings.view(-1)[5] -= 1e-3
    assert not preservation.check(model, tmp_path)["weights"]["llm"]["identical"]


def test_text_tasks_are_scored_by_exact_match(
    tiny_arm: Callable[..., Any],
    settings: Evaluation,
    generation: Generation,
    tmp_path: Path,
    tiny_llm_dir: Path,
) -> None:
    model = SteerMoE.from_config(tiny_arm("linear"))
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
        SteerMoE.from_config(tiny_arm("linear", {"llm.path": str(tmp_path)})), settings, generation, seed=0
    )
    assert found is not None and "greedy, at most 6 new tokens" in found["protocol"]
    assert found["tasks"]["repeat"]["n"] == 3 and found["tasks"]["repeat"]["value"] == pytest.approx(2 / 3)
    assert found["tasks"]["question"] == {"n": 1, "value": 1.0, "low": 1.0, "high": 1.0}


def test_a_bad_line_of_the_text_tasks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text_tasks.jsonl"
    path.write_text('{"task": "repeat", "prompt": "a", "target": "a"}\n{"task": "repeat"}\n')
    with pytest.raises(ValueError, match=r"text_tasks.jsonl, line 2: found .* expected an object with task"):
        preservation.read_text_tasks(path)
