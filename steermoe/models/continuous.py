"""Continuous batching of greedy decoding: where an answer ends, the next prompt takes its place at once.

A batch that is decoded as one waits for its longest answer, and computes tokens that nobody wants in all rows that
have ended (Yu et al., "Orca", OSDI 2022). Here rows come and go between two steps. Keys and values lie in room that
is taken beforehand, right-aligned: a step writes one column of it, and copies nothing.

Shapes: B rows at work, W width of prompts, C columns of keys and values, H width of the LLM, V its vocabulary.
"""

import inspect
import itertools
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache, NoRepeatNGramLogitsProcessor

from steermoe.config import Generation
from steermoe.models.exclusive import exclusive
from steermoe.models.generation import ended, repeats
from steermoe.models.llm import CausalLM, Rows, hidden_states, logits
from steermoe.models.prefix import attends_to_all, prefix_cache
from steermoe.models.room import Room
from steermoe.models.sequence import pack

# Of the slots that are empty before prompts are read: reading few at a time costs more than waiting.
REFILL = 0.25


def continues(llm: CausalLM, generation: Generation) -> bool:
    """Whether answers can be decoded this way: greedily, by an LLM of ours that attends to all that stands before.

    Sampling draws for a batch as a whole, and a beam is many rows: those are left to transformers' `generate`.
    """
    placed = "position_ids" in inspect.signature(llm.base_model.forward).parameters
    return generation.strategy == "greedy" and placed and attends_to_all(llm)


@dataclass
class Prompt:
    """What the LLM reads before an answer.

    Attributes:
        key: the answer's name, whatever can be one of a set.
        prefix_ids: (P0,), what stands before all else.
        embeddings: (W, H), what stands behind that.
    """

    key: Any
    prefix_ids: torch.Tensor
    embeddings: torch.Tensor


@dataclass
class Row:
    """An answer in the making.

    Attributes:
        key: as of its prompt.
        read: tokens that were read, the answer's among them.
        columns: of keys and values, padding between prefix and audio included.
        ids: so far, an end token included.
        scores: the log-likelihood of each of them, where wanted.
        done: nothing more comes.
    """

    key: Any
    read: int
    columns: int
    ids: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    done: bool = False


class Slots:
    """Rows that are decoded together, a token a step.

    Args:
        llm: the LLM.
        generation: how to decode; see `continues`.
        scored: keep the log-likelihood of each token.
        narrow: the last feed-forward may see the wanted rows only (`llm.narrows`).
    """

    def __init__(
        self, llm: CausalLM, generation: Generation, scored: bool = False, narrow: bool = False
    ) -> None:
        self.llm, self.generation, self.scored, self.narrow = llm, generation, scored, narrow
        self.stops = set(llm.generation_config.eos_token_id)
        self.rows: list[Row] = []
        self._room, self._ended = Room(), list[Row]()
        ngram = generation.no_repeat_ngram_size
        self._ngrams = None if ngram is None else NoRepeatNGramLogitsProcessor(ngram)

    @property
    def live(self) -> int:
        """Rows that go on."""
        return sum(not row.done for row in self.rows)

    @exclusive
    @torch.no_grad()
    def read(self, prompts: Iterable[Prompt]) -> None:
        """Read prompts, and write the first token of their answers; those with one prefix are read together."""
        groups: dict[tuple[int, ...], list[Prompt]] = {}
        for prompt in prompts:
            groups.setdefault(tuple(prompt.prefix_ids.tolist()), []).append(prompt)
        for group in groups.values():
            self._read(group)

    def _read(self, prompts: Sequence[Prompt]) -> None:
        widths = torch.tensor([len(p.embeddings) for p in prompts], device=self.llm.device)
        ids_BP = torch.stack([p.prefix_ids for p in prompts])
        before = ids_BP.shape[1]
        cache = prefix_cache(self.llm, ids_BP, torch.full_like(widths, before))
        rows = [p.embeddings for p in prompts]
        if cache is None:
            cache, before = DynamicCache(config=self.llm.config), 0
            if ids_BP.shape[1]:
                embed = self.llm.get_input_embeddings()
                rows = [
                    torch.cat([embed(p.prefix_ids).to(r.dtype), r])
                    for p, r in zip(prompts, rows, strict=True)
                ]
                widths = widths + ids_BP.shape[1]
        padded = pad_sequence(rows, batch_first=True)
        rows_BWH, valid_BW = pack([padded], [widths], "left")
        valid_BW = torch.cat([valid_BW.new_ones(len(rows), before), valid_BW], dim=1)
        last: Rows = (torch.arange(len(rows)), torch.full((len(rows),), rows_BWH.shape[1] - 1))
        hidden_BWH = hidden_states(self.llm, rows_BWH, cache, last if self.narrow else None, valid_BW)
        lengths = (widths + before).tolist()  # with a prefix in front, padding stands behind it
        columns = [valid_BW.shape[1]] * len(rows) if before else lengths
        come = [Row(p.key, read, held) for p, read, held in zip(prompts, lengths, columns, strict=True)]
        self._arrange(cache, valid_BW)
        self.rows += come
        self._write(hidden_BWH[:, -1], come)

    @exclusive
    @torch.no_grad()
    def step(self) -> None:
        """Write a token more of every answer that goes on."""
        if self._room.full or self.live <= (1 - REFILL) * len(self.rows):
            self._arrange()
        if not self.rows:
            return
        room, device = self._room, self.llm.device
        ids_B = torch.tensor([row.ids[-1] for row in self.rows], device=device)
        places_B = torch.tensor([row.read for row in self.rows], device=device)
        room.valid_BC[:, room.end] = True
        output = self.llm.base_model(
            inputs_embeds=self.llm.get_input_embeddings()(ids_B[:, None]),
            attention_mask=room.valid_BC[:, : room.end + 1].long(),
            position_ids=places_B[:, None], past_key_values=room, use_cache=True,
        )  # fmt: skip
        room.end += 1
        for row in self.rows:
            row.read += 1
            row.columns += 1
        self._write(output.last_hidden_state[:, -1], self.rows)

    def _arrange(self, cache: Cache | None = None, valid_BW: torch.Tensor | None = None) -> None:
        """Leave rows that have ended out, and take room."""
        kept = [(place, row.columns) for place, row in enumerate(self.rows) if not row.done]
        self.rows = [row for row in self.rows if not row.done]
        if kept or cache is not None:
            self._room.arrange(kept, cache, valid_BW)
        else:
            self._room = Room()

    def _write(self, hidden_BH: torch.Tensor, rows: Sequence[Row]) -> None:
        """Add the likeliest token to each row that goes on."""
        scores_BV = logits(self.llm, hidden_BH).float()
        total_B = scores_BV.logsumexp(-1) if self.scored else None
        allowed_BV = self._allowed(scores_BV, rows)
        ids_B = allowed_BV.argmax(-1)
        found: list[float] = []
        if total_B is not None:
            found = (scores_BV.gather(-1, ids_B[:, None])[:, 0] - total_B).tolist()
        for place, (row, token) in enumerate(zip(rows, ids_B.tolist(), strict=True)):
            if row.done:
                continue
            row.ids.append(token)
            row.scores += found[place : place + 1]
            most = self.generation.max_new_tokens
            row.done = (
                token in self.stops or len(row.ids) >= most or repeats(row.ids, self.generation.max_repeats)
            )
            self._ended += [row] * row.done

    def _allowed(self, scores_BV: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """Logits without the tokens that may not follow."""
        least = self.generation.min_new_tokens
        early = [place for place, row in enumerate(rows) if len(row.ids) < least]
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
        """End answers as they are."""
        for row in self.rows:
            if row.key in keys and not row.done:
                row.done = True
                self._ended.append(row)

    def take(self) -> list[tuple[Any, list[int], list[float]]]:
        """Key, ids and log-likelihoods of answers that have ended since they were taken last.

        Without end token, and without surplus cycles.
        """
        found, self._ended = self._ended, []
        whole = [(row, ended(row.ids, self.stops, self.generation.max_repeats)) for row in found]
        return [(row.key, ids, row.scores[: len(ids)]) for row, ids in whole]


def answers(
    slots: Slots, prompts: Iterable[Prompt], most: int
) -> Iterator[tuple[Any, list[int], list[float]]]:
    """Key, ids and log-likelihoods of the answer to every prompt, in the order in which they end.

    Args:
        slots: empty.
        prompts: taken as there is room for them; those that follow one another are best of like length.
        most: rows at work at a time.
    """
    coming, waiting = iter(prompts), deque[Prompt]()
    while True:
        free = most - slots.live
        waiting += itertools.islice(coming, max(0, free - len(waiting)))
        if waiting and (free >= REFILL * most or not slots.live):
            slots.read([waiting.popleft() for _ in range(min(free, len(waiting)))])
        elif slots.live:
            slots.step()
        else:
            return
        yield from slots.take()
