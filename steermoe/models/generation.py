"""How answers are decoded: the `generation` section, the same way for audio, texts and Whisper's own decoder.

Shapes: B batch, W width of the packed batch, H width of the LLM, L tokens generated so far.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, NoRepeatNGramLogitsProcessor, StoppingCriteria, StoppingCriteriaList
from transformers.generation.logits_process import LogitsProcessorList

from steermoe.config import Generation
from steermoe.models.exclusive import exclusive
from steermoe.models.llm import CausalLM
from steermoe.models.sequence import pack

GREEDY = Generation(  # for a model in use, where nobody says otherwise
    max_new_tokens=200, min_new_tokens=0, strategy="greedy", num_beams=None, temperature=None, top_p=None,
    no_repeat_ngram_size=None, max_repeats=8,
)  # fmt: skip
Watch = Callable[[list[list[int]]], Sequence[bool]]
"""Shown every row's ids after each step, padding behind an end included; says which rows are to end here."""
LEAST_TEMPERATURE = 1e-5  # logits divided by less overflow; sampling is greedy long before
LONGEST_CYCLE = 64  # tokens; longer cycles are not looked for


@exclusive
@torch.no_grad()
def decode(
    llm: CausalLM,
    embeddings_BWH: torch.Tensor,
    valid_BW: torch.Tensor,
    generation: Generation,
    seed: int = 0,
    cache: Cache | None = None,
    watch: Watch | None = None,
) -> list[list[int]]:
    """Continuations of left-padded rows, up to the first end token, which is left out.

    Args:
        llm: its `generation_config` says which tokens end an answer; nothing else there is heeded.
        embeddings_BWH: rows as `pack` makes them.
        valid_BW: where they are no padding.
        generation: how to decode.
        seed: of strategy `sample`: the same seed gives the same answers to the same batch.
        cache: keys and values of what stands before every row (`prefix_cache`); it is used up.
        watch: looks on, of strategies `greedy` and `sample`.
    """
    if cache is not None:
        # generate() wants the whole rows and leaves out as many places as the cache has.
        before = (len(embeddings_BWH), cache.get_seq_length())
        zeros = embeddings_BWH.new_zeros(*before, embeddings_BWH.shape[-1])
        embeddings_BWH = torch.cat([zeros, embeddings_BWH], dim=1)
        valid_BW = torch.cat([valid_BW.new_ones(before), valid_BW], dim=1)
    inputs: dict[str, Any] = {"inputs_embeds": embeddings_BWH, "attention_mask": valid_BW.long()}
    if cache is not None:
        cache.batch_repeat_interleave(generation.num_beams or 1)  # generate() does so with all else
        inputs["past_key_values"] = cache
    arguments = options(generation)
    if watch is not None:
        own = arguments.get("stopping_criteria", StoppingCriteriaList())
        arguments["stopping_criteria"] = StoppingCriteriaList([*own, Watched(watch)])
    with seeded(generation, seed, embeddings_BWH.device):
        generated = llm.generate(**inputs, **arguments)
    stops = set(llm.generation_config.eos_token_id)
    return [ended(ids, stops, generation.max_repeats) for ids in generated.tolist()]


def options(generation: Generation) -> dict[str, Any]:
    """The arguments of transformers' `generate` that the section stands for."""
    arguments: dict[str, Any] = {
        "max_new_tokens": generation.max_new_tokens,
        "do_sample": generation.strategy == "sample",
        "num_beams": generation.num_beams or 1,
        "repetition_penalty": 1.0,
    }
    if generation.min_new_tokens:
        arguments["min_new_tokens"] = generation.min_new_tokens
    if generation.strategy == "sample":
        temperature = max(generation.temperature or 0.0, LEAST_TEMPERATURE)
        arguments |= {"temperature": temperature, "top_p": generation.top_p or 1.0, "top_k": 0}
    if generation.no_repeat_ngram_size is not None:
        blocked = NoRepeatNGramLogitsProcessor(generation.no_repeat_ngram_size)
        arguments["logits_processor"] = LogitsProcessorList([blocked])
    if generation.max_repeats is not None:
        arguments["stopping_criteria"] = StoppingCriteriaList([RepeatedTail(generation.max_repeats)])
    return arguments


@contextmanager
def seeded(generation: Generation, seed: int, device: torch.device) -> Iterator[None]:
    """Where the section samples: draw from generators seeded anew, and leave the global ones as they were."""
    if generation.strategy != "sample":
        yield
        return
    accelerators = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(devices=accelerators, device_type=device.type if accelerators else "cuda"):
        torch.manual_seed(seed)
        yield


def describe(generation: Generation, seed: int) -> str:
    """The section in words, for the protocol of an evaluation; `seed` where it matters."""
    match generation.strategy:
        case "beam":
            words = [f"beam search, {generation.num_beams} beams"]
        case "sample":
            nucleus = "" if generation.top_p is None else f", top-p {generation.top_p:g}"
            words = [f"sampled at temperature {generation.temperature:g}{nucleus}, seed {seed}"]
        case _:
            words = ["greedy"]
    words.append(f"at most {generation.max_new_tokens} new tokens")
    if generation.min_new_tokens:
        words.append(f"at least {generation.min_new_tokens}")
    if generation.no_repeat_ngram_size is not None:
        words.append(f"no {generation.no_repeat_ngram_size}-gram twice")
    if generation.max_repeats is not None:
        words.append(f"ended where a tail comes more than {generation.max_repeats} times")
    return ", ".join(words)


def answer_texts(
    llm: CausalLM, tokenizer: Any, prompts: Sequence[Sequence[int]], generation: Generation, seed: int
) -> list[str]:
    """The LLM's own answers to prompts of token ids, without any audio."""
    ids = [torch.tensor(prompt) for prompt in prompts]
    padded = pad_sequence(ids, batch_first=True).to(llm.device)
    lengths = torch.tensor([len(row) for row in ids], device=llm.device)
    embeddings, valid = pack([llm.get_input_embeddings()(padded)], [lengths], "left")
    answers = decode(llm, embeddings, valid, generation, seed)
    return [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]


class RepeatedTail(StoppingCriteria):
    """Ends each row whose last tokens are one cycle, more than `max_repeats` times in a row."""

    def __init__(self, max_repeats: int) -> None:
        self.max_repeats = max_repeats

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """True for each of the rows (B, L) that ends here."""
        found = [repeats(row, self.max_repeats) for row in input_ids.tolist()]
        return torch.tensor(found, device=input_ids.device)


class Watched(StoppingCriteria):
    """Shows each step to somebody, who may end rows."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """True for each of the rows (B, L) that is to end."""
        return torch.tensor(self.watch(input_ids.tolist()), device=input_ids.device)


def repeats(ids: Sequence[int], max_repeats: int | None) -> bool:
    """Whether a cycle stands more than `max_repeats` times at the end of `ids`; None: whatever stands there."""
    return max_repeats is not None and cycle(ids[-LONGEST_CYCLE * (max_repeats + 1) :], max_repeats) > 0


def cycle(ids: Sequence[int], max_repeats: int) -> int:
    """Length of the shortest cycle that stands more than `max_repeats` times at the end of `ids`; 0: none."""
    for length in range(1, min(LONGEST_CYCLE, len(ids) // (max_repeats + 1)) + 1):
        start = len(ids) - length * (max_repeats + 1)
        if ids[start:-length] == ids[start + length :]:
            return length
    return 0


def ended(ids: list[int], stops: set[int], max_repeats: int | None) -> list[int]:
    """Generated ids up to the first end token, or to where a cycle came `max_repeats` times."""
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    for place in range(1, end + 1 if max_repeats is not None else 0):
        surplus = cycle(ids[:place], max_repeats or 0)
        if surplus:
            return ids[: place - surplus]
    return ids[:end]
