"""Frozen LLMs of several architectures, quantised, with LoRA, or recomputed, against transformers' own results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from steermoe.config import Llm
from steermoe.data.dataset import Batch
from steermoe.models import llm as llms
from steermoe.models.encoders import load_encoder
from steermoe.models.generation import answer_texts
from steermoe.models.llm import (
    QUANTIZATIONS,
    attends_to_all,
    decoder_layers,
    hidden_states,
    input_embeddings,
    load_llm,
    load_options,
    logits,
)
from steermoe.models.lora import add_lora, train_lora
from steermoe.models.steermoe import SteerMoE

from .conftest import MakeBatch

PROMPTS = ["the cat sings", "please transcribe the audio: one two three two one", "red"]
WINDOW = 6  # tokens that a layer with a sliding window attends to: fewer than any row has
SIZES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": WINDOW, "head_dim": 8},
    # Untied: tied and scaled, random weights only repeat the last token.
    "gemma": {"head_dim": 8, "tie_word_embeddings": False},
    "gemma2": {
        "head_dim": 8, "tie_word_embeddings": False, "sliding_window": WINDOW, "final_logit_softcapping": 0.5,
    },
    "gemma3_text": {
        "head_dim": 8, "tie_word_embeddings": False, "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 6.0},
}  # fmt: skip
ATTENDS_TO_ALL = ("qwen2", "qwen3", "gemma", "cohere", "granite")
PREFIX = (17, 301, 5, 44, 9)
FEATURES, LENGTHS = torch.randn(2, 80, 60, generator=torch.Generator().manual_seed(3)), torch.tensor([60, 33])


def section(path: Path, **changes: Any) -> Llm:
    values = {
        "path": str(path),
        "revision": None,
        "dtype": "float32",
        "quantization": "none",
        "layers": "all",
    }
    return Llm.model_validate(values | changes)


@pytest.fixture(params=["tiny_llm_dir", "tiny_llama_dir"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=SIZES)
def model(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    save_tiny_llm: Callable[..., Path],
    tiny_variant: Callable[..., Any],
) -> SteerMoE:
    path = save_tiny_llm(tmp_path_factory.mktemp(request.param), request.param, **SIZES[request.param])
    torch.manual_seed(3)
    made = SteerMoE.from_config(tiny_variant("linear", {"llm.path": str(path)}))
    assert made.llm.config.model_type == request.param
    return made


# architectures


@torch.no_grad()
def whole_row(model: SteerMoE, batch: Batch) -> torch.Tensor:
    """The only row of a batch, assembled by hand."""
    audio, _ = model.encode(batch.features, batch.feature_lengths)
    table = model.llm.get_input_embeddings()
    return torch.cat([table(batch.prefix_ids), audio, table(batch.prompt_ids)], dim=1)


@torch.no_grad()
def test_logits_and_embeddings_are_the_models_own(model: SteerMoE) -> None:
    ids, kind = torch.arange(24).view(2, 12), model.llm.config.model_type
    own = model.llm(input_ids=ids).logits
    hidden = hidden_states(model.llm, model.llm.get_input_embeddings()(ids))
    assert torch.equal(logits(model.llm, hidden), own)
    unchanged = model.llm.get_output_embeddings()(hidden)
    assert torch.allclose(unchanged, own, rtol=1e-3) != (kind in ("gemma2", "cohere", "granite"))
    assert attends_to_all(model.llm) == (kind in ATTENDS_TO_ALL)
    tokens = model.llm.get_input_embeddings()(torch.arange(model.llm.config.vocab_size))
    assert torch.equal(input_embeddings(model.llm), tokens)
    assert torch.allclose(tokens, model.llm.get_input_embeddings().weight) != kind.startswith("gemma")
    audio = model.projection(torch.randn(1, 500, 32), torch.zeros(1, 1, 32), torch.tensor([1]))
    expected = float(tokens.square().mean().sqrt())
    assert float(audio.square().mean().sqrt()) == pytest.approx(expected, rel=0.15)


@torch.no_grad()
def test_loss_and_answers_of_a_batch_are_those_of_its_rows_by_hand(
    model: SteerMoE, make_batch: MakeBatch, greedy: Any
) -> None:
    """The loss is transformers' own; answers are decoded without padding, KV cache or `generate`."""
    free, total, tokens = greedy(7, max_repeats=None), 0.0, 0
    together = model.generate(make_batch(prefix=PREFIX), free)
    table, stops = model.llm.get_input_embeddings(), model.llm.generation_config.eos_token_id
    for row in range(4):
        batch = make_batch(rows=[row], prefix=PREFIX)
        assert batch.target_ids is not None
        rows = torch.cat([whole_row(model, batch), table(batch.target_ids)], dim=1)
        labels = torch.full(rows.shape[:2], -100)
        labels[:, -batch.target_ids.shape[1] :] = batch.target_ids
        total += float(model.llm(inputs_embeds=rows, labels=labels).loss) * batch.target_ids.shape[1]
        tokens += batch.target_ids.shape[1]
        assert model.generate(batch, free) == [together[row]]
        rows, answer = whole_row(model, batch), []
        while (
            len(answer) < 7
            and (token := int(model.llm(inputs_embeds=rows).logits[0, -1].argmax())) not in stops
        ):
            answer.append(token)
            rows = torch.cat([rows, table(torch.tensor([[token]]))], dim=1)
        assert together[row] == answer
    assert float(model(**make_batch(prefix=PREFIX)).loss) == pytest.approx(total / tokens, rel=1e-4)
    assert len({tuple(answer) for answer in together}) > 1


def test_unknown_changes_of_the_logits_are_refused(
    tmp_path: Path, save_tiny_llm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_tiny_llm(tmp_path, "gemma2", head_dim=8, final_logit_softcapping=0.5)
    monkeypatch.delitem(llms.LOGIT_CHANGES, "final_logit_softcapping")
    with pytest.raises(ValueError, match=r"llm\.path: the logits of .* are not its output embeddings"):
        load_llm(section(path))


# loading


@torch.no_grad()
def test_it_is_frozen_and_the_untouched_model(folder: Path) -> None:
    llm, tokenizer = load_llm(section(folder))
    assert not any(p.requires_grad for p in llm.parameters())
    assert not any(module.training for module in llm.modules())
    untouched = AutoModelForCausalLM.from_pretrained(folder)
    assert untouched.generation_config.do_sample and not llm.generation_config.do_sample
    ids = torch.tensor([tokenizer(PROMPTS[1])["input_ids"]])
    assert torch.equal(llm(input_ids=ids).logits, untouched(input_ids=ids).logits)
    rows, mask = torch.randn(2, 9, 32), torch.ones(2, 9, dtype=torch.long)
    mask[0, 4:] = 0  # right-padded rows need no mask
    masked, ours = llm(inputs_embeds=rows, attention_mask=mask).logits, logits(llm, hidden_states(llm, rows))
    torch.testing.assert_close(ours[0, :4], masked[0, :4])
    torch.testing.assert_close(ours[1], masked[1])


def test_texts_are_answered_as_one_by_one(folder: Path, greedy: Any) -> None:
    llm, tokenizer = load_llm(section(folder))
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    together = answer_texts(llm, tokenizer, prompts, greedy(8), seed=0)
    for prompt, answer in zip(prompts, together, strict=True):
        ids = llm.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
        assert answer == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_layers_are_not_their_experts(save_tiny_llm: Any, tmp_path: Path) -> None:
    sizes = {"num_experts": 8, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
    llm, _ = load_llm(section(save_tiny_llm(tmp_path, "qwen2_moe", **sizes)))
    for layer in llm.model.layers:  # as in architectures whose experts are a list
        layer.mlp.experts = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(8))
    assert decoder_layers(llm) == list(llm.model.layers)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2])
def test_first_layers_are_those_of_the_whole(folder: Path, depth: int) -> None:
    llm, tokenizer = load_llm(section(folder, layers=depth))
    whole = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(PROMPTS[1], return_tensors="pt").input_ids
    states = whole.base_model(input_ids=ids, output_hidden_states=True).hidden_states
    expected = states[depth] if depth == 2 else whole.base_model.get_submodule("norm")(states[depth])
    assert torch.equal(hidden_states(llm, llm.get_input_embeddings()(ids)), expected)
    assert llm.config.num_hidden_layers == depth == len(DynamicCache(config=llm.config).layers)
    cached, plain = (
        llm.generate(ids, max_new_tokens=6, do_sample=False, use_cache=use) for use in (True, False)
    )
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("what", ["tokens", "end", "padding", "no end", "pickle", "layers"])
def test_unusable_llms_are_errors(what: str, tmp_path: Path, tiny_llm_dir: Path) -> None:
    llm = AutoModelForCausalLM.from_pretrained(tiny_llm_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm_dir)
    rows = llm.config.vocab_size
    if what == "end":
        llm.generation_config.eos_token_id = [0, rows]
    if what in ("tokens", "padding"):
        tokenizer.add_tokens([f"<extra {n}>" for n in range(3)])
    if what == "padding":
        tokenizer.pad_token = "<extra 2>"
    if what == "no end":
        tokenizer.eos_token = None
    if what == "pickle":
        llm.config.save_pretrained(tmp_path)
        torch.save(llm.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        llm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    message = {
        "no end": "has no eos_token",
        "pickle": r"llm\.path: found .* safetensors",
        "layers": r"llm\.layers: found 3, the model has 2; legal: all, or 1 to 2",
    }.get(what, rf"llm\.path.*{len(tokenizer)} tokens.*{rows} rows")
    with pytest.raises(ValueError, match=message):
        load_llm(section(tmp_path, layers=3 if what == "layers" else "all"))
    if what == "tokens":
        llm.resize_token_embeddings(rows + 64)  # a table may have more rows than there are tokens
        llm.save_pretrained(tmp_path)
        assert len(load_llm(section(tmp_path))[1]) == len(tokenizer)


# quantisation, recomputation, LoRA

ON_GPU = pytest.param(
    "nf4", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="nf4 needs a GPU")
)


@pytest.mark.parametrize("kind", ["int8", ON_GPU])
def test_gradients_pass_through_a_quantised_llm(
    kind: str, tiny_variant: Any, make_batch: MakeBatch, tmp_path: Path, save_tiny_llm: Any
) -> None:
    llm = save_tiny_llm(tmp_path / "llm", "qwen2", hidden_size=128, intermediate_size=256)
    plain = SteerMoE.from_config(tiny_variant("steering", {"llm.path": str(llm)}))
    model = SteerMoE.from_config(tiny_variant("steering", {"llm.path": str(llm), "llm.quantization": kind}))
    linear: Any = model.llm.model.layers[0].mlp.up_proj
    assert linear.weight.dtype in (torch.int8, torch.uint8) and not linear.weight.requires_grad
    loss, expected = model(**make_batch()).loss, plain(**make_batch()).loss
    assert loss != expected
    torch.testing.assert_close(loss, expected, rtol=0.1, atol=0.1)
    loss.backward()
    expected.backward()
    for (name, p), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is not None) is p.requires_grad, name
        if p.grad is not None and other.grad is not None:
            assert torch.nn.functional.cosine_similarity(p.grad.flatten(), other.grad.flatten(), 0) > 0.7, (
                name
            )
    model.save_pretrained(tmp_path / "adapter")
    again = SteerMoE.from_pretrained(tmp_path / "adapter")
    assert torch.equal(again(**make_batch()).loss, loss)
    assert again.frozen_hashes() == model.frozen_hashes() != plain.frozen_hashes()


def test_quantisations_that_cannot_be_used_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_options("none", torch.float32) == {} and set(QUANTIZATIONS) == {"none", "int8", "nf4"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"llm\.quantization: found 'nf4', which needs a CUDA GPU"):
        load_options("nf4", torch.float32)
    monkeypatch.setattr(llms, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'steermoe\[quantization\]'"):
        load_options("nf4", torch.float32)


@pytest.mark.parametrize("method", ["steering", "steering+lora+llm_lora"])
def test_gradient_checkpointing_changes_nothing_but_memory(
    method: str, tiny_variant: Any, make_batch: MakeBatch, greedy: Any
) -> None:
    kept, gradients, losses, answers = [], [], [], []
    for recompute in (False, True):
        model = SteerMoE.from_config(tiny_variant(method, {"training.gradient_checkpointing": recompute}))
        kept.append(0)

        def count(tensor: torch.Tensor) -> torch.Tensor:
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model.train()(**make_batch(prefix=PREFIX)).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        answers.append(model.eval().generate(make_batch(), greedy(4)))
    assert torch.equal(*losses) and answers[0] == answers[1]
    torch.testing.assert_close(gradients[1], gradients[0])
    assert kept[1] < 0.5 * kept[0]


def test_lora_adapters_start_at_zero_and_alone_are_trained(tiny_variant: Any) -> None:
    variant = tiny_variant("lora", {"lora.dropout": 0.5, "encoder.dtype": "bfloat16"})
    plain, _ = load_encoder(variant.encoder)(FEATURES, LENGTHS)
    encoder = load_encoder(variant.encoder)
    parameters = add_lora(variant.lora, encoder.model, encoder.layers, "lora")
    assert torch.equal(encoder(FEATURES, LENGTHS)[0], plain)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained and all(".lora_A." in name or ".lora_B." in name for name in trained)
    rank, layers, width, ffn = 2, 3, 32, 64
    assert sum(p.numel() for p in parameters) == layers * rank * (2 * (width + width) + (width + ffn))
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.3)
    first, _ = encoder(FEATURES, LENGTHS)
    assert torch.equal(encoder(FEATURES, LENGTHS)[0], first) and first.dtype == torch.bfloat16
    train_lora(encoder, True)  # dropout is active in training only
    assert not torch.equal(encoder(FEATURES, LENGTHS)[0], encoder(FEATURES, LENGTHS)[0])
    assert not encoder.layers[0].training
    train_lora(encoder, False)
    assert torch.equal(encoder(FEATURES, LENGTHS)[0], first)
    first.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in parameters)
    wrong = variant.lora.model_copy(update={"targets": ["q_proj", "o_proj"]})
    with pytest.raises(
        ValueError, match=r"lora\.targets: found \['o_proj'\], the layers have: fc1, fc2, k_proj"
    ):
        encoder = load_encoder(variant.encoder)
        add_lora(wrong, encoder.model, encoder.layers, "lora")
