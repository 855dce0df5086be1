"""Items for the mini language model: text tasks, whose content is read from tokens or from soft embeddings.

A large LLM tolerates inputs that are no token's embedding; a tiny one must be taught to. So most contents are shown
as a stretched stream of frames, the way a pooled encoder would deliver them: words of several frames, gaps of
nothing, mixtures at the boundaries, wrong words, noise, a random scale and offset.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from steermoe.corpora import grammar

PROMPTS = {
    "repeat": ("please transcribe the audio content into text: ", "please repeat the text: "),
    "question": (
        "please answer the following question. The question is : {question}",
        "question : {question} answer : ",
    ),
}
PROMPTS["arithmetic"] = PROMPTS["question"]
SECOND_PROMPT = 0.3  # how often the second wording is used
TASKS = {"repeat": 0.5, "question": 0.3, "arithmetic": 0.2}  # task -> its share
KINDS = {  # task -> the sentences it is about; None: all kinds
    "repeat": None,
    "question": {"deal": 1.0, "place": 1.0, "own": 1.0, "meet": 1.0},
    "arithmetic": {"sum": 1.0},
}
SLOTS, DISTRACTORS = 10, 3  # words of a content at most, and wrong words that are mixed in
POOL = 4  # batches drawn at once, so that each can be of similar lengths


@dataclasses.dataclass(frozen=True)
class Item:
    """What is read (`text`), asked (`prompt`) and to be written (`target`)."""

    task: str
    text: str
    prompt: str
    target: str


def items(rng: np.random.Generator, part: str) -> Iterator[Item]:
    """Endless items of all tasks, about texts of one part of the grammar."""
    sentences = {task: grammar.sentences(rng, part, kinds) for task, kinds in KINDS.items()}
    tasks, shares = list(TASKS), list(TASKS.values())
    while True:
        task = tasks[rng.choice(len(tasks), p=shares)]
        sentence = next(sentences[task])
        prompt = PROMPTS[task][int(rng.random() < SECOND_PROMPT)].format(question=sentence.question)
        yield Item(task, sentence.text, prompt, sentence.text if task == "repeat" else sentence.answer)


def held_out(count: int) -> dict[str, list[Item]]:
    """`count` items of each task about texts that occur in no training."""
    found: dict[str, list[Item]] = {task: [] for task in TASKS}
    stream = items(np.random.default_rng(5), "test")
    while any(len(of) < count for of in found.values()):
        item = next(stream)
        if len(found[item.task]) < count:
            found[item.task].append(item)
    return found


def soft_weights(rng: np.random.Generator, words: Sequence[str]) -> np.ndarray:
    """How much of each word (and distractor) every frame carries: (frames, SLOTS + DISTRACTORS)."""
    lengths = np.array([len(word) for word in words])
    durations = np.maximum(lengths * rng.uniform(0.5, 1.0) * rng.uniform(0.8, 1.25, len(words)), 1.3)
    gaps = rng.uniform(0.2, 0.9, len(words))
    ends = rng.uniform(0.5, 4) + np.cumsum(durations + gaps)
    starts = ends - durations
    count = math.ceil(ends[-1] + rng.uniform(0, 4))
    frame = np.arange(count)[:, None]
    weights = np.zeros((count, SLOTS + DISTRACTORS), np.float32)
    overlap = np.clip(np.minimum(ends, frame + 1) - np.maximum(starts, frame), 0, None)
    weights[:, : len(words)] = overlap * rng.uniform(0.6, 1.2, (count, 1))
    for i in np.nonzero(rng.random(count) < rng.uniform(0, 0.15))[0]:
        strength = rng.uniform(0.2, 1.0)
        weights[i] *= 1 - strength * rng.uniform(0.3, 1)
        weights[i, SLOTS + rng.integers(DISTRACTORS)] += strength
    return weights


def pool(
    rng: np.random.Generator, stream: Iterator[Item], batch: int, soft_share: float
) -> Iterator[tuple[list[Item], list[np.ndarray | None]]]:
    """Batches of items and of how they are read: soft weights, or None for tokens."""
    chosen = [next(stream) for _ in range(batch * POOL)]
    soft = [soft_weights(rng, item.text.split()) if rng.random() < soft_share else None for item in chosen]
    lengths = [
        (len(item.text.split()) if weights is None else len(weights))
        + len(item.prompt.split())
        + len(item.target.split())
        for item, weights in zip(chosen, soft, strict=True)
    ]
    for rows in rng.permutation(np.argsort(lengths).reshape(POOL, batch)):
        yield [chosen[i] for i in rows], [soft[i] for i in rows]


class Reader:
    """Turns items into rows of embeddings.

    Args:
        embed: the language model's token embeddings.
        tokenizer: its tokenizer, to which every spoken word is one token.
    """

    def __init__(self, embed: Any, tokenizer: Any) -> None:
        self.embed, self.tokenizer = embed, tokenizer
        words = grammar.vocabulary()
        self.ids = dict(zip(words, (self.tokens(word)[0] for word in words), strict=True))
        self.spoken = list(self.ids.values())

    @functools.cache  # noqa: B019 (one reader lives as long as the training)
    def tokens(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self.tokenizer(text)["input_ids"]

    def content(self, rng: np.random.Generator, text: str, weights: np.ndarray | None) -> torch.Tensor:
        """What is read: (frames, H) soft embeddings, or (words, H) of tokens."""
        ids = [self.ids[word] for word in text.split()]
        if weights is None:
            return self.embed(torch.tensor(ids))
        wrong = [self.spoken[i] for i in rng.integers(0, len(self.spoken), DISTRACTORS)]
        ids += [0] * (SLOTS - len(ids)) + wrong
        content = torch.from_numpy(weights) @ self.embed(torch.tensor(ids))
        rms = self.embed.weight.detach().square().mean().sqrt()
        noise, offset = (
            torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
            for shape in (tuple(content.shape), content.shape[1])
        )
        content = content + rms * (rng.uniform(0, 0.7) * noise + rng.uniform(0, 0.4) * offset)
        return content * math.exp(rng.uniform(-0.7, 0.7))

    def loss(
        self, llm: Any, rng: np.random.Generator, chosen: list[Item], soft: list[np.ndarray | None]
    ) -> torch.Tensor:
        """Cross-entropy of the targets and their end."""
        rows, targets, places = [], [], []
        for i, (item, weights) in enumerate(zip(chosen, soft, strict=True)):
            content = self.content(rng, item.text, weights)
            prompt, target = (
                self.tokens(item.prompt),
                [*self.tokens(item.target), self.tokenizer.eos_token_id],
            )
            rows.append(torch.cat([content, self.embed(torch.tensor([*prompt, *target]))]))
            places += [(i, len(content) + len(prompt) + k - 1) for k in range(len(target))]
            targets += target
        hidden = llm.model(
            inputs_embeds=pad_sequence(rows, batch_first=True), use_cache=False
        ).last_hidden_state
        at = torch.tensor(places)
        return F.cross_entropy(llm.lm_head(hidden[at[:, 0], at[:, 1]]).float(), torch.tensor(targets))
