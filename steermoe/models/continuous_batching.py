"""Continuous batching of greedy decoding: when an answer ends, the next prompt takes its slot.

A static batch waits for its longest answer and computes unused tokens in all rows that have ended (Yu et al., "Orca",
OSDI 2022). Here rows come and go between two steps. The KV cache is right-aligned: rows that stay and rows that are
added are joined with padding on the left.

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
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, NoRepeatNGramLogitsProcessor

from steermoe.config import Generation
from steermoe.models.generation import ended, repeats
from steermoe.models.joint_decoding import CtcPrefix
from steermoe.models.llm import CausalLM, attends_to_all, hidden_states, logits
from steermoe.models.packing import pack
from steermoe.models.pretrained import exclusive

REFILL = 0.25  # share of slots that must be free before prompts are read: reading few at a time is slow


def continues(llm: CausalLM, generation: Generation) -> bool:
    """Return whether answers can be decoded this way: greedily, by an LLM that attends to all earlier tokens.

    Sampling draws for a batch as a whole, and a beam is many rows: these are left to transformers' `generate`.
    """
    placed = "position_ids" in inspect.signature(llm.base_model.forward).parameters
    return generation.strategy == "greedy" and placed and attends_to_all(llm)


@dataclass
class Prompt:
    """What the LLM reads before an answer: the answer's key (hashable), embeddings (W, H), and CTC scores, if any."""

    key: Any
    embeddings: Tensor
    ctc: CtcPrefix | None = None


@dataclass
class Row:
    """An answer that is being decoded.

    Attributes:
        key: that of its prompt.
        length: tokens in the KV cache, those of the answer included.
        ctc: scores of a transcript with `generation.ctc_weight`.
        ids: tokens so far, an end token included.
        scores: their log-likelihoods, if requested.
        done: it has ended.
    """

    key: Any
    length: int
    ctc: CtcPrefix | None = None
    ids: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    done: bool = False


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
        self._cache: Any = None  # a DynamicCache of all rows
        self._valid_BC = torch.zeros(0, 0, dtype=torch.bool)  # which of its columns are not padding
        self._ended: list[Row] = []
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
        new = [Row(prompt.key, length, prompt.ctc) for prompt, length in zip(prompts, lengths, strict=True)]
        self.rows += new
        self._append(hidden_BWH[:, -1], new)

    @exclusive
    @torch.no_grad()
    def step(self) -> None:
        """Decode one more token of every answer that has not ended."""
        if self.live <= (1 - REFILL) * len(self.rows):
            self._arrange()
        if not self.rows:
            return
        device = self.llm.device
        ids_B = torch.tensor([row.ids[-1] for row in self.rows], device=device)
        positions_B = torch.tensor([row.length for row in self.rows], device=device)
        self._valid_BC = torch.cat([self._valid_BC, self._valid_BC.new_ones(len(self.rows), 1)], 1)
        output = self.llm.base_model(
            inputs_embeds=self.llm.get_input_embeddings()(ids_B[:, None]),
            attention_mask=self._valid_BC.long(), position_ids=positions_B[:, None],
            past_key_values=self._cache, use_cache=True,
        )  # fmt: skip
        for row in self.rows:
            row.length += 1
        self._append(output.last_hidden_state[:, -1], self.rows)

    def _arrange(self, new: DynamicCache | None = None, valid_BW: Tensor | None = None) -> None:
        """Drop rows that have ended, and add the rows of a KV cache of width W; `valid_BW` is not padding."""
        kept = [place for place, row in enumerate(self.rows) if not row.done]
        self.rows = [self.rows[place] for place in kept]
        parts: list[tuple[Any, Tensor, Any]] = [(self._cache, self._valid_BC, kept)] if kept else []
        parts += [] if valid_BW is None else [(new, valid_BW, slice(None))]
        if not parts:
            self._cache = None
            return
        width = max([row.length for row in self.rows] + ([] if valid_BW is None else [valid_BW.shape[1]]))

        def joined(tensors: Iterable[Tensor]) -> Tensor:
            """Return (B, ..., C, ...), the columns in dimension -2 cut or padded on the left to `width`."""
            pairs = zip(tensors, parts, strict=True)
            return torch.cat([pad(t[rows], (0, 0, width - t.shape[-2], 0)) for t, (_, _, rows) in pairs])

        self._valid_BC = joined(valid[..., None] for _, valid, _ in parts)[..., 0]
        layers = list(zip(*(cache.layers for cache, _, _ in parts), strict=True))
        self._cache = DynamicCache(config=self.llm.config)
        for number, of in enumerate(layers):
            self._cache.update(joined(x.keys for x in of), joined(x.values for x in of), number)

    def _append(self, hidden_BH: Tensor, rows: Sequence[Row]) -> None:
        """Append the likeliest token to each row that has not ended."""
        scores_BV = logits(self.llm, hidden_BH).float()
        ids_B = self._chosen(self._allowed(scores_BV, rows), rows)
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

    def _chosen(self, scores_BV: Tensor, rows: Sequence[Row]) -> Tensor:
        """Return the token that follows in each row, the likeliest; by the joint score if the row has CTC scores."""
        ids_B = scores_BV.argmax(-1)
        for place, row in enumerate(rows):
            if row.ctc is not None and not row.done:
                llm_V = scores_BV[place].log_softmax(-1)
                ids_B[place] = row.ctc.choose(llm_V, self.generation.ctc_weight, self.stops)
        return ids_B

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
