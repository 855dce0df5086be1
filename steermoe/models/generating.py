"""Audio to answers: prompts are encoded batch by batch, and continued as there is room, or batch by batch.

Shapes: B batch, W width of the packed batch, H width of the LLM.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from steermoe.config import Generation
from steermoe.models.continuous import Prompt, Slots, answers, continues
from steermoe.models.exclusive import exclusive
from steermoe.models.generation import decode
from steermoe.models.inputs import Inputs
from steermoe.models.llm import CausalLM, hidden_states, logits

if TYPE_CHECKING:
    from steermoe.models.steermoe import SteerMoE

MOST_ROWS = 32  # that are continued at a time


class Generated(NamedTuple):
    """An answer.

    Attributes:
        row: its number, counted through all batches.
        ids: its tokens, without end token.
        log_likelihoods: of each of them; none where they were not wanted.
    """

    row: int
    ids: list[int]
    log_likelihoods: list[float]


@torch.no_grad()
def generate_all(
    model: SteerMoE, batches: Iterable[Inputs], generation: Generation, seed: int, scored: bool, most: int
) -> Iterator[Generated]:
    """See `SteerMoE.generate_all`."""
    if continues(model.llm, generation):
        slots = Slots(model.llm, generation, scored, model.narrows)
        for row, ids, likelihoods in answers(slots, _numbered(model, batches), most):
            yield Generated(row, ids, likelihoods)
        return
    before = 0
    for inputs in batches:
        found = _whole_batch(model, inputs, generation, seed, scored)
        yield from (Generated(row, *each) for row, each in enumerate(found, start=before))
        before += len(found)


@exclusive
def _whole_batch(
    model: SteerMoE, inputs: Inputs, generation: Generation, seed: int, scored: bool
) -> list[tuple[list[int], list[float]]]:
    """Ids and log-likelihoods of the answers to a batch."""
    read, cache = model.read(inputs)
    found = decode(model.llm, *model.packed(read, "left"), generation, seed, cache)
    scores: list[list[float]] = [[] for _ in found]
    if scored:
        prefix = [] if cache is None else [(inputs.prefix_ids, inputs.prefix_lengths)]
        scores = log_likelihoods(model.llm, *model.packed([*prefix, *read], "left"), found)
    return list(zip(found, scores, strict=True))


@exclusive
def prompts(model: SteerMoE, inputs: Inputs, keys: Iterable[Any]) -> list[Prompt]:
    """The rows of a batch, and their names."""
    rows_BWH, valid_BW = model.packed(model.behind_prefix(inputs), "right")
    lengths = valid_BW.sum(1).tolist(), inputs.prefix_lengths.tolist()
    rows = zip(keys, rows_BWH, inputs.prefix_ids, *lengths, strict=True)
    return [Prompt(key, ids[:before], row_WH[:length]) for key, row_WH, ids, length, before in rows]


def _numbered(model: SteerMoE, batches: Iterable[Inputs]) -> Iterator[Prompt]:
    numbers = itertools.count()
    for inputs in batches:
        yield from prompts(model, inputs, itertools.islice(numbers, len(inputs.features)))


@exclusive
@torch.no_grad()
def log_likelihoods(
    llm: CausalLM, rows_BWH: torch.Tensor, valid_BW: torch.Tensor, ids: Sequence[Sequence[int]]
) -> list[list[float]]:
    """The log-likelihood of each token of answers to left-padded rows, of one pass over prompts and answers."""
    table = llm.get_input_embeddings()
    answered = [torch.tensor(row, dtype=torch.int64, device=rows_BWH.device) for row in ids]
    whole = [
        torch.cat([row_WH[valid], table(answer[:-1]).to(row_WH.dtype)])
        for row_WH, valid, answer in zip(rows_BWH, valid_BW, answered, strict=True)
    ]
    hidden_BWH = hidden_states(llm, pad_sequence(whole, batch_first=True))
    found = []
    for hidden_WH, before, answer in zip(hidden_BWH, valid_BW.sum(1).tolist(), answered, strict=True):
        scores = (
            logits(llm, hidden_WH[before - 1 : before - 1 + len(answer)]).float().log_softmax(-1)
        )  # V is large
        found.append(scores.gather(-1, answer[:, None])[:, 0].tolist())
    return found
