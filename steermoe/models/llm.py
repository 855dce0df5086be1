"""The frozen LLM: any causal LM that transformers loads, optionally quantised, or its first layers only.

Shapes: B batch, W width of the packed batch, C columns of a KV cache, H width of the LLM, V its vocabulary.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    DynamicCache,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.cache_utils import DynamicLayer
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from steermoe import config
from steermoe.data.prompts import end_of_turn
from steermoe.hub import located
from steermoe.models.pretrained import DTYPES, Depth, keep_layers, load_frozen

CausalLM = Any  # a PreTrainedModel with a head; transformers types its accessors too loosely to be of use


def load_llm(section: config.Llm, local_files_only: bool = False) -> tuple[CausalLM, Any]:
    """Load the frozen LLM with its first `layers` layers, and its tokenizer.

    Of the LLM's own generation settings (sampling, penalties, ...) only the end tokens are kept; generation also
    stops at the tokenizer's end token and at the token that ends a turn in its chat template.

    Raises:
        ValueError: it cannot be loaded, its tokenizer has no end token or does not fit it, or its logits are not
            its output embeddings applied to its last hidden states, scaled and capped as its configuration declares
            (then our loss would not be the model's).
    """
    section = located(section, "llm", local_files_only)
    options = load_options(section.quantization, DTYPES[section.dtype])
    llm = load_frozen(AutoModelForCausalLM, section.path, section.dtype, "llm", **options)
    keep_decoder_layers(llm, section.layers)
    tokenizer = load_tokenizer(section.path)
    keep_stops(llm, tokenizer, section.path)
    _check_head(llm, section.path)
    return llm, tokenizer


def load_options(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return the further arguments of transformers' `from_pretrained` for a key of QUANTIZATIONS.

    Gradients pass through a quantised LLM; embeddings, norms and output embeddings keep their dtype.

    Args:
        name: key of QUANTIZATIONS.
        dtype: in which products are computed.

    Raises:
        ValueError: bitsandbytes is not installed, or nf4 is selected without a GPU: on CPUs
            it repacks weights for inference at the first evaluation, and then passes no gradients.
    """
    options: dict[str, Any] | None = QUANTIZATIONS[name]
    if options is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"llm.quantization: found {name!r}, which needs bitsandbytes: pip install 'steermoe[quantization]'"
        )
    if "load_in_4bit" in options and not torch.cuda.is_available():
        raise ValueError(f"llm.quantization: found {name!r}, which needs a CUDA GPU; legal here: none, int8")
    from transformers import BitsAndBytesConfig

    if "load_in_4bit" in options:
        options = options | {"bnb_4bit_compute_dtype": dtype}
    place = int(os.environ.get("LOCAL_RANK", "0")) if torch.cuda.is_available() else "cpu"
    return {"quantization_config": BitsAndBytesConfig(**options), "device_map": {"": place}}


def keep_stops(llm: CausalLM, tokenizer: Any, path: str) -> None:
    """Reduce an LLM's generation settings to its end tokens, those of its tokenizer and chat template included.

    Raises:
        ValueError: the tokenizer has no end token, or tokens that the LLM has no embeddings for.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"llm.path: the tokenizer of {path!r} has no eos_token; answers could not end")
    own_stops = llm.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(own_stops if isinstance(own_stops, list) else [own_stops])} - {None}
    if tokenizer.chat_template is not None:
        stops.add(end_of_turn(tokenizer))
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    llm.generation_config = GenerationConfig(eos_token_id=sorted(stops), pad_token_id=pad)
    rows = llm.get_input_embeddings().num_embeddings  # the table may have more rows than there are tokens
    special = {"an end token": max(stops), "the padding token": pad}
    for what, largest in {"a token": max(tokenizer.get_vocab().values()), **special}.items():
        if largest >= rows:
            raise ValueError(
                f"llm.path: the tokenizer and the weights of {path!r} do not belong together: the tokenizer has "
                f"{len(tokenizer)} tokens, and {what} has the id {largest}; the embedding table has {rows} rows; use "
                "the model's own tokenizer, or enlarge the table (resize_token_embeddings) and save the model"
            )


def load_tokenizer(path: str) -> Any:
    """Load a tokenizer as its tokenizer.json describes it, where its tokenizer_config.json says that this is all.

    AutoTokenizer (transformers 5.23) takes the class of the model's architecture instead, which builds another
    pre-tokenizer and so splits prompts into other tokens.
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
            f"llm.path: the logits of {path!r} are not its output embeddings applied to its last hidden states, "
            f"changed as its config.json declares ({', '.join(LOGIT_CHANGES)}); such a model is not supported"
        )


@torch.no_grad()
def input_embeddings(llm: CausalLM) -> Tensor:
    """Return all token embeddings as the layers get them, (V, H): the space of `inputs_embeds`.

    Gemma's embedding module multiplies its weights by sqrt(H), so the weights alone are not what the layers get.
    """
    table = llm.get_input_embeddings()
    return table(torch.arange(table.num_embeddings, device=table.weight.device))


def hidden_states(
    llm: CausalLM, embeddings_BWH: Tensor, cache: Cache | None = None, valid_BC: Tensor | None = None
) -> Tensor:
    """Return the last hidden states (B, W, H).

    Right-padded rows need no mask: causality hides padding on the right, and positions count from 0.

    Args:
        llm, embeddings_BWH: the LLM, and its input.
        cache: gets the new keys and values.
        valid_BC: for rows that are not right-padded, True where a column is not padding.
    """
    inputs: dict[str, Any] = {"inputs_embeds": embeddings_BWH, "use_cache": cache is not None}
    if valid_BC is not None:
        positions_BC = (valid_BC.cumsum(1) - 1).clamp(min=0)
        inputs |= {"attention_mask": valid_BC.long(), "position_ids": positions_BC}
    if cache is not None:
        inputs["past_key_values"] = cache
    return llm.base_model(**inputs).last_hidden_state


def attends_to_all(llm: CausalLM) -> bool:
    """Return whether every layer attends to all earlier tokens: none has a sliding window or a recurrent state."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=llm.config).layers)


def decoder_layers(llm: CausalLM) -> list[torch.nn.Module]:
    """Return the LLM's layers in order."""
    return list(_layer_list(llm))


def _layer_list(llm: CausalLM) -> torch.nn.ModuleList:
    """Return the longest list of modules that is in no other list: lists of experts are inside the layers."""
    found = {name: module for name, module in llm.named_modules() if isinstance(module, torch.nn.ModuleList)}
    outermost = (m for name, m in found.items() if not any(name.startswith(f"{other}.") for other in found))
    return max(outermost, key=len)


def keep_decoder_layers(llm: CausalLM, depth: Depth) -> None:
    """Drop all layers of an LLM but the first `depth`, in its configuration as well, which caches are made from.

    Raises:
        ValueError: there are fewer layers.
    """
    keep_layers(_layer_list(llm), depth, "llm")
    declared = llm.config.get_text_config()
    if depth != "all":
        declared.num_hidden_layers = depth
        if getattr(declared, "layer_types", None) is not None:  # how each layer attends
            declared.layer_types = declared.layer_types[:depth]


def vocabulary_size(llm: CausalLM) -> int:
    """Return V, the number of logits, padding of the table included."""
    return llm.config.get_text_config().vocab_size


def logits(llm: CausalLM, hidden: Tensor) -> Tensor:
    """Return logits (..., V) of hidden states (..., H), scaled and capped as the model's config.json declares."""
    scores = llm.get_output_embeddings()(hidden)
    declared = llm.config.get_text_config()
    for name, change in LOGIT_CHANGES.items():
        value = getattr(declared, name, None)
        if value is not None:
            scores = change(scores, value)
    return scores


def _capped(scores: Tensor, cap: float) -> Tensor:
    return torch.tanh(scores / cap) * cap


# Key of config.json -> what it does to the logits.
LOGIT_CHANGES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "logit_scale": torch.mul,  # Cohere
    "logits_scaling": torch.div,  # Granite
    "lm_head_multiplier": torch.mul,  # Falcon-H1
    "final_logit_softcapping": _capped,  # Gemma 2 and later
}
QUANTIZATIONS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "int8": {"load_in_8bit": True},  # LLM.int8() (Dettmers et al. 2022)
    # 4-bit NormalFloat with double quantisation (QLoRA, Dettmers et al. 2023)
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
