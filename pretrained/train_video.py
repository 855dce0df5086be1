"""Pretrain the mini video encoder: ViT's architecture tells colour, number and kind of drawn shapes from a frame."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from ruamel.yaml import YAML
from torch import nn
from transformers import ViTConfig, ViTModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from steermoe.corpora import shapes

WORDS = {"colour": list(shapes.COLOURS), "number": list(shapes.NUMBERS), "thing": list(shapes.SHAPES)}
CHECKED = 500  # frames that the accuracies are of


def untrained(settings: dict[str, Any]) -> ViTModel:
    """A ViT with random weights."""
    config = ViTConfig(
        image_size=shapes.SIDE,
        patch_size=settings["patch"],
        hidden_size=settings["width"],
        num_hidden_layers=settings["layers"],
        num_attention_heads=settings["heads"],
        intermediate_size=settings["ffn"],
    )
    return ViTModel(config, add_pooling_layer=False)


def frames(rng: np.random.Generator, processor: Any, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (count, 3, H, W) of a frame of each of so many videos, and the three answers (count, 3) as numbers."""
    pictures, answers = [], []
    for _ in range(count):
        chosen = [int(rng.integers(len(words))) for words in WORDS.values()]
        scene = shapes.Scene(*(words[one] for one, words in zip(chosen, WORDS.values(), strict=True)))
        pictures.append(shapes.draw(rng, scene)[0])
        answers.append(chosen)
    return processor(pictures, return_tensors="pt")["pixel_values"], torch.tensor(answers)


def scores(model: ViTModel, heads: nn.ModuleList, pixels: torch.Tensor) -> Iterator[torch.Tensor]:
    """Logits of each question, from the mean over the tokens of a frame."""
    pooled = model(pixels).last_hidden_state.mean(1)
    return (head(pooled) for head in heads)


def main(params: Path, out: Path) -> None:
    """Train as PARAMS says; write model and image processor to OUT."""
    settings = YAML(typ="safe").load(params)["video"]
    torch.manual_seed(settings["seed"])
    rng = np.random.default_rng(settings["seed"])
    side = {"height": shapes.SIDE, "width": shapes.SIDE}
    processor = ViTImageProcessorPil(size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    model = untrained(settings).train()
    heads = nn.ModuleList(nn.Linear(settings["width"], len(words)) for words in WORDS.values())
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], settings["learning_rate"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings["learning_rate"], total_steps=settings["steps"]
    )
    began = time.time()
    for step in range(1, settings["steps"] + 1):
        pixels, answers = frames(rng, processor, settings["batch"])
        losses = [
            nn.functional.cross_entropy(found, answers[:, question])
            for question, found in enumerate(scores(model, heads, pixels))
        ]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == settings["steps"]:
            print(
                f"step {step}: loss {loss.item():.3f}, {(time.time() - began) / step:.2f} s/step", flush=True
            )
    with torch.no_grad():
        pixels, answers = frames(np.random.default_rng(settings["seed"] + 1), processor, CHECKED)
        for question, found in enumerate(scores(model.eval(), heads, pixels)):
            right = (found.argmax(1) == answers[:, question]).float().mean().item()
            print(f"unseen frames: {list(WORDS)[question]} {right:.3f}", flush=True)
    model.half().save_pretrained(out)
    processor.save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
