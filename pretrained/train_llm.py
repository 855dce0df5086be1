"""Pretrain the mini language model: Qwen2's architecture on the grammar's text tasks (see `soft_text.py`)."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from ruamel.yaml import YAML
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pretrained import NOTICE
from pretrained.soft_text import KINDS, PROMPTS, Item, Reader, held_out, items, pool, soft_weights
from steermoe.corpora import grammar
from steermoe.models.generation import GREEDY, decode
from steermoe.models.packing import pack

EOS = "<|endoftext|>"
HELD_OUT = 200  # items of each task
SHORT = GREEDY.model_copy(update={"max_new_tokens": 12})


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every word of the grammar and of its questions is one token."""
    rng, words = np.random.default_rng(0), set(grammar.vocabulary())
    for task, kinds in KINDS.items():
        sentences = grammar.sentences(rng, "train", kinds)
        for _ in range(3000):
            question = next(sentences).question
            for prompt in PROMPTS[task]:
                words |= set(prompt.format(question=question).split())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sorted(words), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)


def untrained(settings: dict[str, Any], tokenizer: Any) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings["width"],
        intermediate_size=settings["ffn"],
        num_hidden_layers=settings["layers"],
        num_attention_heads=settings["heads"],
        num_key_value_heads=settings["kv_heads"],
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    config.update({"notice": NOTICE})
    llm = Qwen2ForCausalLM(config)
    llm.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=[tokenizer.eos_token_id], pad_token_id=tokenizer.eos_token_id
    )
    return llm


@torch.no_grad()
def exact_match(llm: Qwen2ForCausalLM, reader: Reader, chosen: list[Item], soft: bool) -> float:
    """Share of items whose greedy answer is the target."""
    rng, right = np.random.default_rng(1), 0
    for start in range(0, len(chosen), 50):
        batch = chosen[start : start + 50]
        rows = []
        for item in batch:
            weights = soft_weights(rng, item.text.split()) if soft else None
            prompt = reader.embed(torch.tensor(reader.tokens(item.prompt)))
            rows.append(torch.cat([reader.content(rng, item.text, weights), prompt]))
        lengths = torch.tensor([len(row) for row in rows])
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        answers = decode(llm, *pack([padded], [lengths], "left"), SHORT)
        texts = [reader.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]
        right += sum(text == item.target for text, item in zip(texts, batch, strict=True))
    return right / len(chosen)


def main(params: Path, out: Path) -> None:
    """Train as PARAMS says; write model, tokenizer and held-out text tasks to OUT."""
    settings = YAML(typ="safe").load(params)["llm"]
    torch.manual_seed(settings["seed"])
    rng = np.random.default_rng(settings["seed"])
    tokenizer = make_tokenizer(settings["tokens"])
    tokenizer.save_pretrained(out)
    llm = untrained(settings, tokenizer)
    reader, tests = Reader(llm.get_input_embeddings(), tokenizer), held_out(HELD_OUT)
    optimizer = torch.optim.AdamW(
        llm.parameters(), settings["learning_rate"], weight_decay=0.05, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min(
            (i + 1) / settings["warmup_steps"], 0.5 + 0.5 * math.cos(math.pi * i / settings["steps"])
        ),
    )
    stream, began, queue = items(rng, "train"), time.time(), []
    for step in range(1, settings["steps"] + 1):
        if not queue:
            queue = list(pool(rng, stream, settings["batch"], min(0.2 + 0.5 * step / 2000, 0.7)))
        with torch.autocast("cpu", torch.bfloat16):
            loss = reader.loss(llm, rng, *queue.pop())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == settings["steps"]:
            print(
                f"step {step}: loss {loss.item():.3f}, {(time.time() - began) / step:.2f} s/step", flush=True
            )
        if step % 1000 == 0 or step == settings["steps"]:
            for task, chosen in tests.items():
                scores = [f"{exact_match(llm, reader, chosen, soft):.3f}" for soft in (False, True)]
                print(
                    f"step {step}: held-out {task}: {scores[0]} from text, {scores[1]} from soft embeddings",
                    flush=True,
                )
    llm.half().save_pretrained(out)
    lines = [
        json.dumps({"task": item.task, "prompt": f"{item.text} {item.prompt}", "target": item.target})
        for of in tests.values()
        for item in of
    ]
    (out / "text_tasks.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
