"""Continuous batching of greedy decoding: when an answer ends, the next prompt takes its slot.

A static batch waits for its longest answer and computes unused tokens in all rows that have ended (Yu et al., "Orca",
OSDI 2022). Here rows come and go between two steps. The KV cache is allocated in advance and right-aligned, so that a
step writes one column of it and copies nothing.

Shapes: B active rows, W width of prompts, C columns of the KV cache, H width of the LLM, V its vocabulary.
"""

from __future__ import annotations

import inspect
import itertools
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache, NoRepeatNGramLogitsProcessor
from transformers.cache_utils import DynamicLayer

from steermoe.config import Generation
from steermoe.models.generation import ended, repeats
from steermoe.models.llm import CausalLM, attends_to_all, hidden_states, logits
from steermoe.models.packing import pack
from steermoe.models.pretrained import exclusive

REFILL = 0.25  # share of slots that must be free before prompts are read: reading few at a time is slow
AHEAD = 64  # columns of the KV cache that are allocated in advance


def continues(llm: CausalLM, generation: Generation) -> bool:
    """Return whether answers can be decoded this way: greedily, by an LLM that attends to all earlier tokens.

    Sampling draws for a batch as a whole, and a beam is many rows: these are left to transformers' `generate`.
    """
    placed = "position_ids" in inspect.signature(llm.base_model.forward).parameters
    return generation.strategy == "greedy" and placed and attends_to_all(llm)


@dataclass
class Prompt:
    """What the LLM reads before an answer: the answer's key (hashable) and embeddings (W, H)."""

    key: Any
    embeddings: Tensor


@dataclass
class Row:
    """An answer that is being decoded.

    Attributes:
        key: that of its prompt.
        length: tokens in the KV cache, those of the answer included.
        ids: tokens so far, an end token included.
        scores: their log-likelihoods, if requested.
        done: it has ended.
    """

    key: Any
    length: int
    ids: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    done: bool = False


class SlotLayer(DynamicLayer):
    """Keys and values (B, heads, C, head width) of a layer of a `SlotCache`."""

    def __init__(self, cache: SlotCache, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.cache, self.keys, self.values = cache, keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def get_seq_length(self) -> int:
        """Return the number of columns before the one that a step writes."""
        return self.cache.end

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write a step's column; return all columns in use."""
        end = self.cache.end
        assert self.keys is not None and self.values is not None
        self.keys[:, :, end : end + 1] = key_states
        self.values[:, :, end : end + 1] = value_states
        return self.keys[:, :, : end + 1], self.values[:, :, : end + 1]


class SlotCache(Cache):
    """Keys and values of all rows.

    Attributes:
        end: the column that the next step writes, the same for all rows.
        valid_BC: which columns before `end` are not padding.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.end = 0
        self.valid_BC = torch.zeros(0, 0, dtype=torch.bool)

    @property
    def full(self) -> bool:
        """Whether no allocated column is left."""
        return self.end == self.valid_BC.shape[1]

    def arrange(
        self, kept: Sequence[tuple[int, int]], new: Cache | None = None, valid_BW: Tensor | None = None
    ) -> None:
        """Allocate anew for rows that stay and rows that are added.

        Args:
            kept: rows that stay, and their lengths.
            new: keys and values of added rows, all of width W; None: none are added.
            valid_BW: which of these columns are not padding.
        """
        added = 0 if valid_BW is None else len(valid_BW)
        width = max([length for _, length in kept] + ([] if valid_BW is None else [valid_BW.shape[1]]))
        rows, held = [row for row, _ in kept], min(width, self.end)
        old = slice(self.end - held, self.end)

        def allocated(before: Tensor | None, after: Tensor | None) -> Tensor:
            """Return (B, ..., C, ...) with columns in dimension -2, the rows of `before` first."""
            like = before if after is None else after
            assert like is not None
            columns = like.new_zeros(len(rows) + added, *like.shape[1:-2], width + AHEAD, like.shape[-1])
            if before is not None and rows:
                columns[: len(rows), ..., width - held : width, :] = before[rows][..., old, :]
            if after is not None:
                columns[len(rows) :, ..., width - after.shape[-2] : width, :] = after
            return columns

        sources: list[Any] = [None] * len(self.layers) if new is None else list(new.layers)
        targets: list[Any] = self.layers or [None] * len(sources)
        self.layers = [
            SlotLayer(
                self,
                *(allocated(getattr(t, part, None), getattr(s, part, None)) for part in ("keys", "values")),
            )
            for t, s in zip(targets, sources, strict=True)
        ]
        before = self.valid_BC[..., None] if len(self.valid_BC) else None
        self.valid_BC = allocated(before, None if valid_BW is None else valid_BW[..., None])[..., 0]
        self.end = width


class DecodeSlots:
    """Rows that are decoded together, one token a step.

    Args:
        llm: the LLM.
        generation: how to decode; see `continues`.
        scored: keep the log-likelihood of each token.
    """

    def __init__(self, llm: CausalLM, generation: Generation, scored: bool = False) -> None:
        self.llm, self.generation, self.scored = llm, generation, scored
        self.stops = set(llm.generation_config.eos_token_id)
        self.rows: list[Row] = []
        self._cache, self._ended = SlotCache(), list[Row]()
        ngram = generation.no_repeat_ngram_size
        self._ngrams = None if ngram is None else NoRepeatNGramLogitsProcessor(ngram)

    @property
    def live(self) -> int:
        """The number of rows that have not ended."""
        return sum(not row.done for row in self.rows)

    @exclusive
    @torch.no_grad()
    def read(self, prompts: Sequence[Prompt]) -> None:
        """Read prompts, and decode the first token of their answers."""
        lengths = [len(prompt.embeddings) for prompt in prompts]
        padded = pad_sequence([prompt.embeddings for prompt in prompts], batch_first=True)
        rows_BWH, valid_BW = pack([padded], [torch.tensor(lengths, device=padded.device)], "left")
        cache = DynamicCache(config=self.llm.config)
        hidden_BWH = hidden_states(self.llm, rows_BWH, cache, valid_BW)
        self._arrange(cache, valid_BW)
        new = [Row(prompt.key, length) for prompt, length in zip(prompts, lengths, strict=True)]
        self.rows += new
        self._append(hidden_BWH[:, -1], new)

    @exclusive
    @torch.no_grad()
    def step(self) -> None:
        """Decode one more token of every answer that has not ended."""
        if self._cache.full or self.live <= (1 - REFILL) * len(self.rows):
            self._arrange()
        if not self.rows:
            return
        cache, device = self._cache, self.llm.device
        ids_B = torch.tensor([row.ids[-1] for row in self.rows], device=device)
        positions_B = torch.tensor([row.length for row in self.rows], device=device)
        cache.valid_BC[:, cache.end] = True
        output = self.llm.base_model(
            inputs_embeds=self.llm.get_input_embeddings()(ids_B[:, None]),
            attention_mask=cache.valid_BC[:, : cache.end + 1].long(),
            position_ids=positions_B[:, None], past_key_values=cache, use_cache=True,
        )  # fmt: skip
        cache.end += 1
        for row in self.rows:
            row.length += 1
        self._append(output.last_hidden_state[:, -1], self.rows)

    def _arrange(self, cache: Cache | None = None, valid_BW: Tensor | None = None) -> None:
        """Drop rows that have ended, and allocate the KV cache anew."""
        kept = [(place, row.length) for place, row in enumerate(self.rows) if not row.done]
        self.rows = [row for row in self.rows if not row.done]
        if kept or cache is not None:
            self._cache.arrange(kept, cache, valid_BW)
        else:
            self._cache = SlotCache()

    def _append(self, hidden_BH: Tensor, rows: Sequence[Row]) -> None:
        """Append the likeliest token to each row that has not ended."""
        scores_BV = logits(self.llm, hidden_BH).float()
        ids_B = self._allowed(scores_BV, rows).argmax(-1)
        found: list[float] = []
        if self.scored:
            found = (scores_BV.gather(-1, ids_B[:, None])[:, 0] - scores_BV.logsumexp(-1)).tolist()
        for place, (row, token) in enumerate(zip(rows, ids_B.tolist(), strict=True)):
            if row.done:
                continue
            row.ids.append(token)
            row.scores += found[place : place + 1]
            row.done = (
                token in self.stops
                or len(row.ids) >= self.generation.max_new_tokens
                or repeats(row.ids, self.generation.max_repeats)
            )
            self._ended += [row] * row.done

    def _allowed(self, scores_BV: Tensor, rows: Sequence[Row]) -> Tensor:
        """Return the logits with -inf for tokens that must not follow."""
        early = [place for place, row in enumerate(rows) if len(row.ids) < self.generation.min_new_tokens]
        if not early and self._ngrams is None:
            return scores_BV
        allowed_BV = scores_BV.clone()
        for place in early:
            allowed_BV[place, sorted(self.stops)] = float("-inf")
        if self._ngrams is not None:
            for place, row in enumerate(rows):
                ids: Any = torch.tensor([row.ids], dtype=torch.int64, device=allowed_BV.device)
                one: Any = allowed_BV[place : place + 1]
                allowed_BV[place : place + 1] = self._ngrams(ids, one)
        return allowed_BV

    def drop(self, keys: Collection[Any]) -> None:
        """End these answers as they are."""
        for row in self.rows:
            if row.key in keys and not row.done:
                row.done = True
                self._ended.append(row)

    def take(self) -> list[tuple[Any, list[int], list[float]]]:
        """Return key, ids and log-likelihoods of the answers that have ended since the last call.

        They have no end token, and no surplus repetitions.
        """
        found, self._ended = self._ended, []
        whole = [(row, ended(row.ids, self.stops, self.generation.max_repeats)) for row in found]
        return [(row.key, ids, row.scores[: len(ids)]) for row, ids in whole]


def answers(
    slots: DecodeSlots, prompts: Iterable[Prompt], most: int
) -> Iterator[tuple[Any, list[int], list[float]]]:
    """Yield key, ids and log-likelihoods of the answer to every prompt, in the order in which they end.

    Args:
        slots: empty slots.
        prompts: taken when slots are free; adjacent ones should be of similar length.
        most: maximum number of active rows.
    """
    source, waiting = iter(prompts), deque[Prompt]()
    while True:
        free = most - slots.live
        waiting += itertools.islice(source, max(0, free - len(waiting)))
        if waiting and (free >= REFILL * most or not slots.live):
            slots.read([waiting.popleft() for _ in range(min(free, len(waiting)))])
        elif slots.live:
            slots.step()
        else:
            return
        yield from slots.take()
