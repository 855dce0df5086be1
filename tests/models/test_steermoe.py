from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModelForCausalLM

from steermoe.models.steermoe import SteerMoE

METHODS = ("steering", "linear", "lora")
Batch = dict[str, torch.Tensor]
MakeBatch = Callable[..., Batch]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(method: str, tiny_variant: Callable[..., Any]) -> SteerMoE:
    return stirred(SteerMoE.from_config(tiny_variant(method)))


@torch.no_grad()
def stirred(model: SteerMoE) -> SteerMoE:
    """Away from the initial values, at which steering and LoRA do next to nothing."""
    generator = torch.Generator().manual_seed(9)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.startswith("projection"):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def train(model: SteerMoE, batch: Batch, steps: int, rate: float = 1e-2) -> list[float]:
    parameters = [p for group in model.parameter_groups().values() for p in group]
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def heard_by_encoder(model: SteerMoE, batch: Batch) -> tuple[torch.Tensor, ...]:
    prompt = model.llm.get_input_embeddings()(batch["prompt_ids"])
    return batch["features"], batch["feature_lengths"], prompt, batch["prompt_lengths"]


# the batch an utterance is in


@torch.no_grad()
def test_audio_tokens_do_not_depend_on_the_batch(model: SteerMoE, make_batch: MakeBatch) -> None:
    batch = make_batch()
    together, lengths = model.encode(*heard_by_encoder(model, batch))
    assert lengths.tolist() == [5, 20, 1, 13]  # ceil(ceil(frames / 2) / 4)
    for row in range(4):
        alone = make_batch(rows=[row])
        single, length = model.encode(*heard_by_encoder(model, alone))
        assert length.item() == lengths[row] == single.shape[1]
        torch.testing.assert_close(together[row, : lengths[row]], single[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_loss_of_a_batch_is_the_mean_over_its_rows_tokens(model: SteerMoE, make_batch: MakeBatch) -> None:
    together = model(**make_batch())
    alone = [model(**make_batch(rows=[row])) for row in range(4)]
    tokens = torch.stack([output.num_tokens for output in alone])
    losses = torch.stack([output.loss for output in alone])
    assert tokens.tolist() == [3, 6, 1, 2]
    assert together.num_tokens == 12
    assert together.num_correct == sum(output.num_correct for output in alone)
    torch.testing.assert_close(together.loss, (losses * tokens).sum() / tokens.sum(), atol=1e-5, rtol=1e-4)


def test_gradients_of_a_batch_are_those_of_its_rows(model: SteerMoE, make_batch: MakeBatch) -> None:
    model(**make_batch()).loss.backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for row in range(4):
        output = model(**make_batch(rows=[row]))
        (output.loss * output.num_tokens / 12).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, together[name], atol=1e-5, rtol=1e-3)


def test_answers_ignore_the_batch(model: SteerMoE, make_batch: MakeBatch, heard: Any, greedy: Any) -> None:
    together = model.generate(heard(make_batch()), generation=greedy(7))
    alone = [model.generate(heard(make_batch(rows=[row])), generation=greedy(7))[0] for row in range(4)]
    assert together == alone
    assert len({tuple(answer) for answer in alone}) > 1
    torch.manual_seed(1)
    assert model.generate(heard(make_batch()), generation=greedy(7)) == together


@torch.no_grad()
def test_the_loss_is_transformers_own(model: SteerMoE, make_batch: MakeBatch) -> None:
    """One row, put together by hand, through the LLM's own loss."""
    batch = make_batch(rows=[1])
    audio, _ = model.encode(*heard_by_encoder(model, batch))
    table = model.llm.get_input_embeddings()
    rows = torch.cat([audio, table(batch["prompt_ids"]), table(batch["target_ids"])], dim=1)
    labels = torch.full(rows.shape[:2], -100)
    labels[:, -batch["target_ids"].shape[1] :] = batch["target_ids"]
    reference = model.llm(inputs_embeds=rows, labels=labels).loss
    torch.testing.assert_close(model(**batch).loss, reference, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(
    implementation: str, tiny_variant: Callable[..., Any], make_batch: MakeBatch
) -> None:
    model = stirred(SteerMoE.from_config(tiny_variant("steering")))
    expected = model(**make_batch()).loss
    frozen: Any = model.encoder.model
    frozen.set_attn_implementation(implementation)
    model.llm.set_attn_implementation(implementation)
    torch.testing.assert_close(model(**make_batch()).loss, expected, atol=1e-5, rtol=1e-5)


# what is trained, and what is not


def test_only_the_methods_own_parts_are_trained(method: str, model: SteerMoE) -> None:
    layers, experts, width, llm_width = 3, 4, 32, 32
    projection = (width + 1) * llm_width
    counts = {
        "steering": {
            "projection": projection,
            "vectors": layers * experts * width + layers,
            "router": (width + 1) * experts * layers,
        },
        "linear": {"projection": projection},
        "lora": {"projection": projection, "lora": layers * 2 * (2 * (width + width) + (width + 64))},
    }
    groups = model.parameter_groups()
    assert {name: sum(p.numel() for p in group) for name, group in groups.items()} == counts[method]
    if method == "steering":
        total = layers * experts * width + (width + 1) * experts * layers + layers + (width + 1) * llm_width
        assert sum(counts[method].values()) == total
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    expected = {
        "steering": {
            "steering.vectors",
            "steering.scales",
            "steering.router.linear.weight",
            "steering.router.linear.bias",
        },
        "linear": set(),
        "lora": {name for name in trained if ".lora_A." in name or ".lora_B." in name},
    }
    assert set(trained) == {"projection.linear.weight", "projection.linear.bias"} | expected[method]
    grouped = [id(p) for group in groups.values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_gradients_reach_all_that_is_trained_and_nothing_else(model: SteerMoE, make_batch: MakeBatch) -> None:
    model(**make_batch()).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@torch.no_grad()
def test_the_frozen_models_do_not_change(model: SteerMoE, make_batch: MakeBatch) -> None:
    ids = torch.tensor([model.tokenizer("the red cat sings")["input_ids"]])
    hashes, logits = model.frozen_hashes(), model.llm(input_ids=ids).logits
    before = {name: tensor.clone() for name, tensor in model.trainable_state_dict().items()}
    with torch.enable_grad():
        train(model, make_batch(), steps=3)
    assert model.training
    assert not any(m.training for m in model.llm.modules())
    inside = [m for name, m in model.encoder.named_modules() if "lora_dropout" not in name]
    assert not any(m.training for m in inside)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in model.trainable_state_dict().items())
    assert model.frozen_hashes() == hashes
    assert torch.equal(model.llm(input_ids=ids).logits, logits)
    untouched: Any = AutoModelForCausalLM.from_pretrained(model.config.llm.path)
    assert torch.equal(untouched(input_ids=ids).logits, logits)


def test_the_hashes_are_the_same_for_all_methods(tiny_variant: Callable[..., Any]) -> None:
    hashes = [SteerMoE.from_config(tiny_variant(method)).frozen_hashes() for method in METHODS]
    assert hashes[0] == hashes[1] == hashes[2]
    assert hashes[0]["encoder"] != hashes[0]["llm"]


@torch.no_grad()
def test_a_changed_frozen_weight_changes_its_hash(model: SteerMoE) -> None:
    before = model.frozen_hashes()
    model.llm.get_input_embeddings().weight[3, 4] += 1e-3
    after = model.frozen_hashes()
    assert after["llm"] != before["llm"] and after["encoder"] == before["encoder"]


def test_lora_dropout_follows_the_mode(tiny_variant: Callable[..., Any]) -> None:
    model = SteerMoE.from_config(tiny_variant("lora", {"lora.dropout": 0.3}))
    dropouts = [m for m in model.encoder.modules() if isinstance(m, torch.nn.Dropout)]
    for mode in (False, True, False):
        model.train(mode)
        assert {m.training for m in dropouts} == {mode}


# starting and learning


def starts(models: Iterable[SteerMoE], name: str) -> list[torch.Tensor]:
    return [model.get_parameter(name) for model in models]


def test_every_variant_of_a_seed_starts_from_the_same_projection(tiny_variant: Callable[..., Any]) -> None:
    state = torch.manual_seed(123).get_state()
    models = [SteerMoE.from_config(tiny_variant(method)) for method in METHODS]
    assert torch.equal(torch.get_rng_state(), state)
    first, *others = starts(models, "projection.linear.weight")
    assert all(torch.equal(first, other) for other in others)
    again = SteerMoE.from_config(tiny_variant("steering"))
    for name, tensor in models[0].trainable_state_dict().items():
        assert torch.equal(tensor, again.trainable_state_dict()[name]), name
    other_seed = SteerMoE.from_config(tiny_variant("steering", {"seed": 6}))
    for name in ("projection.linear.weight", "steering.vectors"):
        assert not torch.equal(*starts([models[0], other_seed], name))


def test_a_few_steps_lower_the_loss(
    method: str, tiny_variant: Callable[..., Any], make_batch: MakeBatch
) -> None:
    model = SteerMoE.from_config(tiny_variant(method))
    losses = train(model, make_batch(), steps=30, rate=2e-2)
    assert losses[-1] < 0.93 * losses[0]


def test_layers_can_be_chosen(tiny_variant: Callable[..., Any], make_batch: MakeBatch) -> None:
    model = SteerMoE.from_config(tiny_variant("steering", {"steering.layers": [1]}))
    model(**make_batch()).loss.backward()
    assert model.steering is not None and len(model.steering.vectors) == 4
    assert all(p.grad is not None and p.grad.any() for p in model.steering.parameters())


def test_concatenation_instead_of_the_mean(tiny_variant: Callable[..., Any], make_batch: MakeBatch) -> None:
    model = SteerMoE.from_config(tiny_variant("linear", {"projector.downsample": "concat"}))
    assert model.get_parameter("projection.linear.weight").shape == (32, 4 * 32)
    assert model(**make_batch()).loss.isfinite()


def test_another_llm(
    tiny_variant: Callable[..., Any], tiny_llama_dir: Path, make_batch: MakeBatch, heard: Any, greedy: Any
) -> None:
    model = SteerMoE.from_config(tiny_variant("steering", {"llm.path": str(tiny_llama_dir)}))
    assert type(model.llm).__name__ == "LlamaForCausalLM"
    losses = train(model, make_batch(), steps=10, rate=2e-2)
    assert losses[-1] < losses[0]
    alone = [model.generate(heard(make_batch(rows=[row])), generation=greedy(4))[0] for row in range(4)]
    assert model.generate(heard(make_batch()), generation=greedy(4)) == alone


def test_bfloat16_frozen_weights(
    method: str, tiny_variant: Callable[..., Any], make_batch: MakeBatch, heard: Any, greedy: Any
) -> None:
    model = SteerMoE.from_config(tiny_variant(method, {"encoder.dtype": "bfloat16", "llm.dtype": "bfloat16"}))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    losses = train(model, make_batch(), steps=15, rate=2e-2)
    assert losses[-1] < losses[0]
    model.eval()
    assert len(model.generate(heard(make_batch()), generation=greedy(4))) == 4


def test_autocast(method: str, tiny_variant: Callable[..., Any], make_batch: MakeBatch) -> None:
    model = stirred(SteerMoE.from_config(tiny_variant(method)))
    exact = model(**make_batch()).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**make_batch()).loss
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    torch.testing.assert_close(loss, exact, rtol=0.1, atol=0.1)


# use


def test_recordings_are_transcribed_one_or_many(model: SteerMoE, tmp_path: Path, greedy: Any) -> None:
    rng = np.random.default_rng(0)
    waves = [rng.normal(0, 0.1, samples).astype(np.float32) for samples in (16000, 4001, 30000)]
    for number, wave in enumerate(waves):
        soundfile.write(tmp_path / f"{number}.wav", wave, 16000, subtype="FLOAT")
    paths = [str(tmp_path / f"{number}.wav") for number in range(3)]
    texts = model.transcribe(paths, generation=greedy(5))
    assert texts == [model.transcribe(wave, generation=greedy(5)) for wave in waves]
    assert texts == [model.transcribe(Path(path), generation=greedy(5)) for path in paths]
    assert model.transcribe(waves[0], question="who sings?", generation=greedy(5)) != texts[0]
    with pytest.raises(ValueError, match="the encoder takes at most"):
        model.transcribe(np.zeros(16000 * 5, np.float32))


@pytest.mark.parametrize("window", ["unpadded", "full"])
@pytest.mark.parametrize(("after", "frames"), [(None, [50, 50, 50, 50]), (0, [50, 13, 13, 13])])
def test_gates_are_those_of_the_audio_whatever_the_window(
    window: str, after: int | None, frames: list[int], tiny_variant: Callable[..., Any]
) -> None:
    changes = {
        "encoder.window": window,
        "projector.downsample_after_layer": after,
        "steering.post_encoder": True,
    }
    model = SteerMoE.from_config(tiny_variant("steering", changes))
    second = np.random.default_rng(3).normal(0, 0.1, 16_000).astype(np.float32)
    assert [len(gates) for gates in model.gates(second)] == frames
    answer = model.ask(second, return_gates=True)
    assert answer.gates is not None and [len(gates) for gates in answer.gates] == frames


def test_an_answer_brings_its_gates_where_they_are_wanted(tiny_variant: Callable[..., Any]) -> None:
    model = SteerMoE.from_config(tiny_variant("steering"))
    samples = np.random.default_rng(3).normal(0, 0.1, 16_000).astype(np.float32)
    assert model.ask(samples).gates is None
    answer = model.ask(samples, return_gates=True)
    assert answer.gates is not None and model.steering is not None
    assert len(answer.gates) == len(model.steering.hook_points)
    for found, expected in zip(answer.gates, model.gates(samples), strict=True):
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="method linear has no gates"):
        SteerMoE.from_config(tiny_variant("linear")).ask(samples, return_gates=True)
