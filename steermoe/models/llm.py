"""The frozen language model: any that transformers loads as a causal LM; nothing here knows its architecture.

Shapes: B batch, W width of the packed batch, H width of the LLM.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from steermoe import config
from steermoe.models.frozen import DTYPES, load_frozen
from steermoe.models.quantization import load_options
from steermoe.models.sequence import pack

CausalLM = Any  # a PreTrainedModel with a head; transformers types its accessors too loosely to be of use


def load_llm(section: config.Llm) -> tuple[CausalLM, Any]:
    """The frozen LLM and its tokenizer.

    The LLM's own generation settings (sampling, penalties, ...) are replaced: it decodes greedily, and stops
    at the tokenizer's end token and at those that the LLM stopped at before.

    Raises:
        ValueError: it cannot be loaded, its tokenizer has no end token, or its logits are not its output
            embeddings applied to its last hidden states (then our loss would not be the model's).
    """
    options = load_options(section.quantization, DTYPES[section.dtype])
    llm = load_frozen(AutoModelForCausalLM, section.path, section.dtype, "llm", **options)
    tokenizer = load_tokenizer(section.path)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"llm.path: the tokenizer of {section.path!r} has no eos_token; answers could not end"
        )
    own_stops = llm.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(own_stops if isinstance(own_stops, list) else [own_stops])} - {None}
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    llm.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, repetition_penalty=1.0, eos_token_id=sorted(stops), pad_token_id=pad
    )
    _check_head(llm, section.path)
    return llm, tokenizer


def load_tokenizer(path: str) -> Any:
    """The tokenizer as its tokenizer.json describes it, where its tokenizer_config.json says that this is all of it.

    AutoTokenizer (transformers 5.23) takes the class of the model's architecture instead, which builds a
    pre-tokenizer of its own: every prompt would then be cut into other tokens.
    """
    if get_tokenizer_config(path).get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        return PreTrainedTokenizerFast.from_pretrained(path)
    return AutoTokenizer.from_pretrained(path)


@torch.no_grad()
def _check_head(llm: CausalLM, path: str) -> None:
    ids = torch.arange(min(8, llm.get_input_embeddings().num_embeddings))[None].to(llm.device)
    own = llm(input_ids=ids).logits
    ours = logits(llm, hidden_states(llm, llm.get_input_embeddings()(ids)))
    if not torch.allclose(own.float(), ours.float(), rtol=1e-2, atol=1e-2 * float(own.abs().max())):
        raise ValueError(
            f"llm.path: the logits of {path!r} are not its output embeddings applied to its last hidden "
            "states: they are scaled or capped; such a model is not supported"
        )


def hidden_states(llm: CausalLM, embeddings_BWH: torch.Tensor) -> torch.Tensor:
    """Last hidden states (B, W, H) of right-padded rows.

    Without attention mask: causality keeps padding on the right away from all that stands before it, and
    positions count from 0 in every row as they are.
    """
    return llm.base_model(inputs_embeds=embeddings_BWH, use_cache=False).last_hidden_state


def decoder_layers(llm: CausalLM) -> list[torch.nn.Module]:
    """The LLM's layers: the longest list of modules in it."""
    lists = [module for module in llm.modules() if isinstance(module, torch.nn.ModuleList)]
    return list(max(lists, key=len))


def logits(llm: CausalLM, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of hidden states (..., H)."""
    return llm.get_output_embeddings()(hidden)


@torch.no_grad()
def decode(
    llm: CausalLM, embeddings_BWH: torch.Tensor, valid_BW: torch.Tensor, max_new_tokens: int
) -> list[list[int]]:
    """Greedy continuations of left-padded rows, up to the first end token, which is left out."""
    generated = llm.generate(
        inputs_embeds=embeddings_BWH, attention_mask=valid_BW.long(), max_new_tokens=max_new_tokens
    )
    stops = set(llm.generation_config.eos_token_id)
    answers = []
    for ids in generated.tolist():
        end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
        answers.append(ids[:end])
    return answers


def greedy(llm: CausalLM, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """The LLM's own greedy answers to texts, without any audio."""
    ids = [torch.tensor(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(llm.device)
    lengths = torch.tensor([len(row) for row in ids], device=llm.device)
    embeddings, valid = pack([llm.get_input_embeddings()(padded)], [lengths], "left")
    answers = decode(llm, embeddings, valid, max_new_tokens)
    return [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]
