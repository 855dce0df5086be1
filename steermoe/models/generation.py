"""Decoding by the `generation` section, the same way for audio, texts and Whisper's own decoder.

Shapes: B batch, W width of the packed batch, H width of the LLM, L tokens generated so far.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    NoRepeatNGramLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.logits_process import LogitsProcessorList

from steermoe.config import Generation
from steermoe.config.errors import located
from steermoe.models.llm import CausalLM, hidden_states, logits
from steermoe.models.packing import pack
from steermoe.models.pretrained import exclusive

GREEDY = Generation(  # of adapters that do not store their generation settings
    max_new_tokens=200, min_new_tokens=0, strategy="greedy", num_beams=None, temperature=None, top_p=None,
    no_repeat_ngram_size=None, max_repeats=8, ctc_weight=0.0,
)  # fmt: skip
Watch = Callable[[list[list[int]]], Sequence[bool]]
"""Gets every row's ids after each step, padding after an end token included; returns which rows must end."""
MIN_TEMPERATURE = 1e-5  # logits divided by less overflow; sampling is greedy long before
LONGEST_CYCLE = 64  # tokens; longer repetitions are not searched for
# Fields of a transformers GenerationConfig that are no decoding settings of a call.
NOT_SETTINGS = {"eos_token_id", "pad_token_id", "bos_token_id", "transformers_version", "_from_model_config"}


def generation_settings(
    base: Generation, given: GenerationConfig | None = None, **changes: Any
) -> Generation:
    """Return `base` with the settings of a transformers GenerationConfig, then with `changes`.

    Args:
        base: settings where neither says otherwise.
        given: max_new_tokens, min_new_tokens, do_sample, num_beams, temperature, top_p and no_repeat_ngram_size are
            used; do_sample and num_beams choose the strategy.
        **changes: values of these or of `Generation`'s fields; None: no change.

    Raises:
        ValueError: a setting has no effect here, or a value is invalid.
    """
    wanted = {} if given is None else {k: v for k, v in given.to_diff_dict().items() if k not in NOT_SETTINGS}
    wanted |= {name: value for name, value in changes.items() if value is not None}
    sampled = wanted.pop("do_sample", None)
    if wanted.get("num_beams") == 1:
        del wanted["num_beams"]
        sampled = bool(sampled)
    if "strategy" not in wanted and (sampled is not None or "num_beams" in wanted):
        wanted["strategy"] = "sample" if sampled else "beam" if "num_beams" in wanted else "greedy"
    if unknown := sorted(wanted.keys() - Generation.model_fields.keys()):
        allowed = ", ".join(["do_sample", *Generation.model_fields])
        raise ValueError(f"generation: found {', '.join(unknown)}, which have no effect; allowed: {allowed}")
    if wanted.get("strategy", base.strategy) != base.strategy:
        base = base.model_copy(
            update={"num_beams": None, "temperature": None, "top_p": None, "ctc_weight": 0.0}
        )
        if wanted["strategy"] == "sample":
            wanted.setdefault("temperature", 1.0)
    return validated(base.model_dump() | wanted)


def validated(values: Mapping[str, Any]) -> Generation:
    """Return values as a `Generation`; ValueError names those that are invalid."""
    try:
        return Generation.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{path}{line}" for path, line in located(error, Generation))
        raise ValueError(f"generation: {problems}") from error


@exclusive
@torch.no_grad()
def decode(
    llm: CausalLM,
    embeddings_BWH: Tensor,
    valid_BW: Tensor,
    generation: Generation,
    seed: int = 0,
    watch: Watch | None = None,
) -> list[list[int]]:
    """Return continuations of left-padded rows, up to the first end token, which is left out.

    Args:
        llm: its `generation_config` has the end tokens, and nothing else that matters.
        embeddings_BWH, valid_BW: rows as `pack` returns them.
        generation, seed: how to decode, and the seed of sampling; the same seed gives the same batch the same answers.
        watch: called after each step of the strategies `greedy` and `sample`.
    """
    arguments = options(generation)
    if watch is not None:
        own = arguments.get("stopping_criteria", StoppingCriteriaList())
        arguments["stopping_criteria"] = StoppingCriteriaList([*own, _Stop(watch)])
    with seeded(generation, seed, embeddings_BWH.device):
        generated = llm.generate(inputs_embeds=embeddings_BWH, attention_mask=valid_BW.long(), **arguments)
    stops = set(llm.generation_config.eos_token_id)
    return [ended(ids, stops, generation.max_repeats) for ids in generated.tolist()]


def options(generation: Generation) -> dict[str, Any]:
    """Return the arguments of transformers' `generate` for the section."""
    arguments: dict[str, Any] = {
        "max_new_tokens": generation.max_new_tokens,
        "do_sample": generation.strategy == "sample",
        "num_beams": generation.num_beams or 1,
        "repetition_penalty": 1.0,
    }
    if generation.min_new_tokens:
        arguments["min_new_tokens"] = generation.min_new_tokens
    if generation.strategy == "sample":
        temperature = max(generation.temperature or 0.0, MIN_TEMPERATURE)
        arguments |= {"temperature": temperature, "top_p": generation.top_p or 1.0, "top_k": 0}
    if generation.no_repeat_ngram_size is not None:
        blocked = NoRepeatNGramLogitsProcessor(generation.no_repeat_ngram_size)
        arguments["logits_processor"] = LogitsProcessorList([blocked])
    most = generation.max_repeats
    if most is not None:
        repeated = _Stop(lambda rows: [repeats(row, most) for row in rows])
        arguments["stopping_criteria"] = StoppingCriteriaList([repeated])
    return arguments


@contextmanager
def seeded(generation: Generation, seed: int, device: torch.device) -> Iterator[None]:
    """Seed the random generators if the section samples, and restore them afterwards."""
    if generation.strategy != "sample":
        yield
        return
    accelerators = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(devices=accelerators, device_type=device.type if accelerators else "cuda"):
        torch.manual_seed(seed)
        yield


def describe(generation: Generation, seed: int) -> str:
    """Describe the section in words, with the seed if it matters."""
    match generation.strategy:
        case "beam":
            words = [f"beam search, {generation.num_beams} beams"]
        case "sample":
            nucleus = "" if generation.top_p is None else f", top-p {generation.top_p:g}"
            words = [f"sampled at temperature {generation.temperature:g}{nucleus}, seed {seed}"]
        case _:
            words = ["greedy"]
    if generation.ctc_weight:
        words.append(f"transcripts by LLM and CTC, whose weight is {generation.ctc_weight:g}")
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
    """Return the LLM's answers to prompts of token ids without audio."""
    ids = [torch.tensor(prompt) for prompt in prompts]
    padded = pad_sequence(ids, batch_first=True).to(llm.device)
    lengths = torch.tensor([len(row) for row in ids], device=llm.device)
    embeddings, valid = pack([llm.get_input_embeddings()(padded)], [lengths], "left")
    answers = decode(llm, embeddings, valid, generation, seed)
    return [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]


@exclusive
@torch.no_grad()
def log_likelihoods(
    llm: CausalLM, rows_BWH: Tensor, valid_BW: Tensor, ids: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Return the log-likelihood of each token of answers to left-padded rows, in one pass over both."""
    table = llm.get_input_embeddings()
    answered = [torch.tensor(row, dtype=torch.int64, device=rows_BWH.device) for row in ids]
    whole = [
        torch.cat([row_WH[valid], table(answer[:-1]).to(row_WH.dtype)])
        for row_WH, valid, answer in zip(rows_BWH, valid_BW, answered, strict=True)
    ]
    hidden_BWH = hidden_states(llm, pad_sequence(whole, batch_first=True))
    found = []
    for hidden_WH, before, answer in zip(hidden_BWH, valid_BW.sum(1).tolist(), answered, strict=True):
        scores = logits(llm, hidden_WH[before - 1 : before - 1 + len(answer)]).float().log_softmax(-1)
        found.append(scores.gather(-1, answer[:, None])[:, 0].tolist())  # row by row, as V is large
    return found


class _Stop(StoppingCriteria):
    """Ends the rows for which `check` returns True."""

    def __init__(self, check: Watch) -> None:
        self.check = check

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return True for each of the rows (B, L) that ends here."""
        return torch.tensor(self.check(input_ids.tolist()), device=input_ids.device)


def repeats(ids: Sequence[int], max_repeats: int | None) -> bool:
    """Return whether `ids` end in more than `max_repeats` repetitions of a cycle; None: never."""
    return max_repeats is not None and cycle(ids[-LONGEST_CYCLE * (max_repeats + 1) :], max_repeats) > 0


def cycle(ids: Sequence[int], max_repeats: int) -> int:
    """Return the length of the shortest cycle that ends `ids` more than `max_repeats` times; 0: there is none."""
    for length in range(1, min(LONGEST_CYCLE, len(ids) // (max_repeats + 1)) + 1):
        start = len(ids) - length * (max_repeats + 1)
        if ids[start:-length] == ids[start + length :]:
            return length
    return 0


def ended(ids: list[int], stops: set[int], max_repeats: int | None) -> list[int]:
    """Return generated ids up to the first end token, or to the `max_repeats`-th repetition of a cycle."""
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    for place in range(1, end + 1 if max_repeats is not None else 0):
        surplus = cycle(ids[:place], max_repeats or 0)
        if surplus:
            return ids[: place - surplus]
    return ids[:end]
