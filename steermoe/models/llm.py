"""The frozen language model: any that transformers loads as a causal LM; nothing here knows its architecture.

Shapes: B batch, W width of the packed batch, H width of the LLM, V its vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Cache, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from steermoe import config
from steermoe.data.prompts import end_of_turn
from steermoe.hub import located
from steermoe.models.frozen import DTYPES, Depth, keep_layers, load_frozen
from steermoe.models.quantization import load_options

Rows = tuple[torch.Tensor, torch.Tensor]
"""Row and column of each of N positions."""
CausalLM = Any  # a PreTrainedModel with a head; transformers types its accessors too loosely to be of use


def load_llm(section: config.Llm) -> tuple[CausalLM, Any]:
    """The frozen LLM, with so many of its layers, and its tokenizer.

    Of the LLM's own generation settings (sampling, penalties, ...) only the tokens that it stops at are kept;
    it stops at the tokenizer's end token too, and at the token that ends a turn in its chat template.

    Raises:
        ValueError: it cannot be loaded, its tokenizer has no end token or does not fit it, or its logits are not
            its output embeddings applied to its last hidden states, scaled and capped as its configuration declares
            (then our loss would not be the model's).
    """
    section = located(section, "llm")
    options = load_options(section.quantization, DTYPES[section.dtype])
    llm = load_frozen(AutoModelForCausalLM, section.path, section.dtype, "llm", **options)
    keep_decoder_layers(llm, section.layers)
    tokenizer = load_tokenizer(section.path)
    keep_stops(llm, tokenizer, section.path)
    _check_head(llm, section.path)
    return llm, tokenizer


def keep_stops(llm: CausalLM, tokenizer: Any, path: str) -> None:
    """Leave of an LLM's generation settings its end tokens, with those of the tokenizer and its chat template.

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
    _check_vocabulary(llm, tokenizer, path)


def _check_vocabulary(llm: CausalLM, tokenizer: Any, path: str) -> None:
    """Check that every token has an embedding; a table may have more rows than there are tokens."""
    rows = llm.get_input_embeddings().num_embeddings
    ends = llm.generation_config
    special = {"an end token": max(ends.eos_token_id), "the padding token": ends.pad_token_id}
    for what, largest in {"a token": max(tokenizer.get_vocab().values()), **special}.items():
        if largest >= rows:
            raise ValueError(
                f"llm.path: the tokenizer and the weights of {path!r} do not belong together: the tokenizer has "
                f"{len(tokenizer)} tokens, and {what} has the id {largest}; the embedding table has {rows} rows; use "
                "the model's own tokenizer, or enlarge the table (resize_token_embeddings) and save the model"
            )


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
            f"llm.path: the logits of {path!r} are not its output embeddings applied to its last hidden states, "
            f"changed as its config.json declares ({', '.join(LOGIT_CHANGES)}); such a model is not supported"
        )


@torch.no_grad()
def input_embeddings(llm: CausalLM) -> torch.Tensor:
    """All token embeddings as the layers are given them, (V, H): the space of `inputs_embeds`.

    Gemma's embedding module multiplies its weights by sqrt(H): they are not yet what the layers get. Granite
    multiplies `inputs_embeds`, whatever they come from, later on: this is no part of the space.
    """
    table = llm.get_input_embeddings()
    return table(torch.arange(table.num_embeddings, device=table.weight.device))


def hidden_states(
    llm: CausalLM,
    embeddings_BWH: torch.Tensor,
    cache: Cache | None = None,
    wanted: Rows | None = None,
    valid_BC: torch.Tensor | None = None,
) -> torch.Tensor:
    """Last hidden states (B, W, H) of right-padded rows, or of others.

    Right-padded rows need no attention mask: causality keeps padding on the right away from all that stands
    before it, and positions count from 0, or from the end of the cache, in every row as they are. Of a cache the
    new keys and values are appended; it is used up.

    Args:
        llm, embeddings_BWH, cache: what reads, what is read, and what was read before.
        wanted: row and column of the hidden states that count, where `narrows` is true of the LLM; those of
            the others come out undefined but finite, and cost less.
        valid_BC: of rows that are not right-padded, what is no padding, of the cache's C - W columns, too.
    """
    inputs: dict[str, Any] = {"inputs_embeds": embeddings_BWH, "use_cache": cache is not None}
    if valid_BC is not None:
        places_BC = (valid_BC.cumsum(1) - 1).clamp(min=0)
        places_BW = places_BC[:, -embeddings_BWH.shape[1] :]
        inputs |= {"attention_mask": valid_BC.long(), "position_ids": places_BW}
    if cache is not None:
        inputs["past_key_values"] = cache
    with _narrowed(_last_feed_forward(llm), wanted):
        return llm.base_model(**inputs).last_hidden_state


@torch.no_grad()
def narrows(llm: CausalLM) -> bool:
    """Whether the feed-forward of the last layer can be spared where nothing reads its output.

    Behind the last attention no position looks at another one, in all architectures that we know; here it is
    tried, for the LLM may be one that we do not know.
    """
    if _last_feed_forward(llm) is None:
        return False
    ids = torch.arange(min(8, llm.get_input_embeddings().num_embeddings))[None].to(llm.device)
    embedded = llm.get_input_embeddings()(ids)
    wanted = (torch.tensor([0, 0], device=llm.device), torch.tensor([2, 5], device=llm.device))
    try:
        found = hidden_states(llm, embedded, wanted=wanted)[wanted].float()
    except (TypeError, AttributeError, IndexError, RuntimeError):  # it takes or returns more than a tensor
        return False
    whole = hidden_states(llm, embedded)[wanted].float()
    return torch.allclose(found, whole, rtol=1e-2, atol=1e-2 * float(whole.abs().max()))


def _last_feed_forward(llm: CausalLM) -> torch.nn.Module | None:
    layers = decoder_layers(llm)  # none where another machine has them
    return getattr(layers[-1], "mlp", None) if layers else None


@contextmanager
def _narrowed(feed_forward: torch.nn.Module | None, wanted: Rows | None) -> Iterator[None]:
    """Within the context, a feed-forward sees the wanted rows only, and returns zeros for the others."""
    if wanted is None or feed_forward is None:
        yield
        return
    shapes: list[torch.Size] = []

    def narrow(module: torch.nn.Module, args: Any) -> Any:
        shapes.append(args[0].shape)
        return (args[0][wanted][None], *args[1:])

    def widen(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.new_zeros(shapes.pop()).index_put(wanted, output[0])

    hooks = [feed_forward.register_forward_pre_hook(narrow), feed_forward.register_forward_hook(widen)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def decoder_layers(llm: CausalLM) -> list[torch.nn.Module]:
    """The LLM's layers, in order."""
    return list(_layer_list(llm))


def _layer_list(llm: CausalLM) -> torch.nn.ModuleList:
    """The longest list of modules that is in no other list: experts are lists inside the layers."""
    found = {name: module for name, module in llm.named_modules() if isinstance(module, torch.nn.ModuleList)}
    outermost = (m for name, m in found.items() if not any(name.startswith(f"{other}.") for other in found))
    return max(outermost, key=len)


def keep_decoder_layers(llm: CausalLM, depth: Depth) -> None:
    """Drop all layers of an LLM but the first `depth`; its configuration, which caches are made by, says so.

    Raises:
        ValueError: there are not so many.
    """
    keep_layers(_layer_list(llm), depth, "llm")
    declared = llm.config.get_text_config()
    if depth != "all":
        declared.num_hidden_layers = depth
        if getattr(declared, "layer_types", None) is not None:  # of each layer, how it attends
            declared.layer_types = declared.layer_types[:depth]


def vocabulary_size(llm: CausalLM) -> int:
    """V: how many logits there are, a padded table counted whole."""
    return llm.config.get_text_config().vocab_size


def logits(llm: CausalLM, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) of hidden states (..., H), scaled and capped as the model's config.json declares."""
    scores = llm.get_output_embeddings()(hidden)
    declared = llm.config.get_text_config()
    for name, change in LOGIT_CHANGES.items():
        value = getattr(declared, name, None)
        if value is not None:
            scores = change(scores, value)
    return scores


def _capped(scores: torch.Tensor, cap: float) -> torch.Tensor:
    return torch.tanh(scores / cap) * cap


# Key of config.json -> what it does to the logits.
LOGIT_CHANGES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "logit_scale": torch.mul,  # Cohere
    "logits_scaling": torch.div,  # Granite
    "lm_head_multiplier": torch.mul,  # Falcon-H1
    "final_logit_softcapping": _capped,  # Gemma 2 and later
}
