"""The whole model: batch invariance, what is trained, and the public interface."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils.generic import ModelOutput

from steermoe.models.steermoe import SteerMoE

from .conftest import MakeBatch, stirred

METHODS = ("steering", "linear", "lora")
RNG = np.random.default_rng(0)
RECORDINGS = [RNG.normal(0, 0.1, samples).astype(np.float32) for samples in (16000, 4001, 30000)]


@pytest.fixture(params=METHODS)
def model(request: pytest.FixtureRequest, tiny_variant: Callable[..., Any]) -> SteerMoE:
    return stirred(SteerMoE.from_config(tiny_variant(request.param)))


@pytest.fixture
def steered(tiny_variant: Callable[..., Any]) -> SteerMoE:
    return stirred(SteerMoE.from_config(tiny_variant("steering")))


# batches


def test_loss_gradients_and_answers_of_a_batch_are_those_of_its_rows(
    model: SteerMoE, make_batch: MakeBatch, greedy: Any
) -> None:
    together = model(**make_batch())
    together.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    alone = [model(**make_batch(rows=[row])) for row in range(4)]
    assert [int(output.num_tokens) for output in alone] == [3, 6, 1, 2] and together.num_tokens == 12
    assert together.num_correct == sum(output.num_correct for output in alone)
    mean = torch.stack([output.loss * output.num_tokens / 12 for output in alone]).sum()
    torch.testing.assert_close(together.loss, mean, atol=1e-5, rtol=1e-4)
    mean.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-3)
        else:
            assert parameter.grad is None, name
    answers = model.generate(make_batch(), greedy(7))
    assert answers == [model.generate(make_batch(rows=[row]), greedy(7))[0] for row in range(4)]
    assert len({tuple(answer) for answer in answers}) > 1


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(
    implementation: str, steered: SteerMoE, make_batch: MakeBatch
) -> None:
    expected = steered(**make_batch()).loss
    frozen: Any = steered.encoder.model
    frozen.set_attn_implementation(implementation)
    steered.llm.set_attn_implementation(implementation)
    torch.testing.assert_close(steered(**make_batch()).loss, expected, atol=1e-5, rtol=1e-5)


def test_forward_returns_a_model_output(steered: SteerMoE, make_batch: MakeBatch, tiny_variant: Any) -> None:
    output: Any = steered(**make_batch(), return_logits=True)
    assert isinstance(output, ModelOutput)
    output = cast(Any, output)
    assert output.aux_loss is None
    assert output.logits.shape == (12, steered.llm.config.vocab_size)
    targets = make_batch()["target_ids"]
    expected = torch.nn.functional.cross_entropy(output.logits, targets[targets >= 0])
    torch.testing.assert_close(output.loss, expected)
    coefficients = {"steering.router_aux_loss_coef": 0.5}
    weighted = SteerMoE.from_config(tiny_variant("steering", coefficients)).train()
    plain = SteerMoE.from_config(tiny_variant("steering"))(**make_batch()).loss
    found = weighted(**make_batch())
    assert found.aux_loss > 0.4
    torch.testing.assert_close(found.loss, plain + found.aux_loss)


# what is trained


def test_only_the_methods_own_parts_are_trained(model: SteerMoE) -> None:
    layers, experts, width, method = 3, 4, 32, model.config.method
    counts = {
        "steering": {"vectors": layers * experts * width + layers, "router": (width + 1) * experts * layers},
        "linear": {},
        "lora": {"lora": layers * 2 * (2 * (width + width) + (width + 64))},
    }[method] | {"projection": (width + 1) * 32}
    assert {name: sum(p.numel() for p in group) for name, group in model.parameter_groups().items()} == counts


def test_training_changes_what_is_trained_and_nothing_frozen(model: SteerMoE, make_batch: MakeBatch) -> None:
    ids = torch.tensor([model.tokenizer("the red cat sings")["input_ids"]])
    hashes = model.frozen_hashes()
    before = {name: tensor.clone() for name, tensor in model.trainable_state_dict().items()}
    parameters = [p for group in model.parameter_groups().values() for p in group]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        model(**make_batch()).loss.backward()
        optimizer.step()
    assert model.training and not any(m.training for m in model.llm.modules())
    inside = [m for name, m in model.encoder.named_modules() if "lora_dropout" not in name]
    assert not any(m.training for m in inside)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in model.trainable_state_dict().items())
    assert model.frozen_hashes() == hashes
    untouched: Any = AutoModelForCausalLM.from_pretrained(model.config.llm.path)
    assert torch.equal(untouched(input_ids=ids).logits, model.llm(input_ids=ids).logits)
    with torch.no_grad():
        model.llm.get_input_embeddings().weight[3, 4] += 1e-3
    after = model.frozen_hashes()
    assert after["llm"] != hashes["llm"] and after["encoder"] == hashes["encoder"]


def test_every_variant_of_a_seed_starts_from_the_same_projection(tiny_variant: Any) -> None:
    state = torch.manual_seed(123).get_state()
    models = [SteerMoE.from_config(tiny_variant(method)) for method in METHODS]
    assert torch.equal(torch.get_rng_state(), state)
    assert models[0].frozen_hashes() == models[1].frozen_hashes() == models[2].frozen_hashes()
    name = "projection.linear.weight"
    first, *others = (model.get_parameter(name) for model in models)
    assert all(torch.equal(first, other) for other in others)
    again = SteerMoE.from_config(tiny_variant("steering")).trainable_state_dict()
    assert all(torch.equal(t, again[name]) for name, t in models[0].trainable_state_dict().items())
    other = SteerMoE.from_config(tiny_variant("steering", {"seed": 6})).trainable_state_dict()
    assert all(not torch.equal(again[name], other[name]) for name in (name, "steering.vectors"))


def test_bfloat16_frozen_weights(model: SteerMoE, tiny_variant: Any, make_batch: MakeBatch) -> None:
    changes = {"encoder.dtype": "bfloat16", "llm.dtype": "bfloat16"}
    half = SteerMoE.from_config(tiny_variant(model.config.method, changes))
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in half.parameters() if not p.requires_grad} == {torch.bfloat16}
    half.load_state_dict(model.trainable_state_dict(), strict=False)
    loss = half(**make_batch()).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in half.parameters() if p.requires_grad)
    torch.testing.assert_close(loss, model(**make_batch()).loss, rtol=0.1, atol=0.1)


# use


def test_a_list_in_is_a_list_out(steered: SteerMoE, tmp_path: Path, greedy: Any) -> None:
    paths = [tmp_path / f"{number}.wav" for number in range(3)]
    for path, wave in zip(paths, RECORDINGS, strict=True):
        soundfile.write(path, wave, 16000, subtype="FLOAT")
    texts = steered.transcribe([str(path) for path in paths], max_new_tokens=5)
    assert texts == [steered.transcribe(wave, generation_config=greedy(5)) for wave in RECORDINGS]
    assert texts == [steered.transcribe(path, max_new_tokens=5) for path in paths]
    answers = steered.ask(RECORDINGS, "who sings?", max_new_tokens=5)
    assert answers == [steered.ask(wave, "who sings?", max_new_tokens=5) for wave in RECORDINGS]
    assert [answer.text for answer in answers] != texts
    with pytest.raises(ValueError, match="the encoder takes at most"):
        steered.transcribe(np.zeros(16000 * 5, np.float32))
    with pytest.raises(ValueError, match="found question 'who' and a prompt"):
        steered.ask(RECORDINGS[0], "who", prompt="say: ")


def test_generate_takes_audio_a_prompt_and_transformers_settings(steered: SteerMoE) -> None:
    ids = steered.generate(audio=RECORDINGS, prompt="say: ", max_new_tokens=5)
    decoded = [text.strip() for text in steered.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert decoded == [answer.text for answer in steered.ask(RECORDINGS, prompt="say: ", max_new_tokens=5)]
    given = GenerationConfig(max_new_tokens=5, num_beams=3)
    beams = steered.generate(audio=RECORDINGS[0], generation_config=given)
    assert beams == steered.generate(audio=RECORDINGS[0], max_new_tokens=5, num_beams=3)
    sampled = partial(
        steered.generate, audio=RECORDINGS[0], max_new_tokens=9, do_sample=True, temperature=3.0
    )
    assert sampled(seed=1) == sampled(seed=1) != sampled(seed=2)
    assert steered.transcribe(RECORDINGS[0]) == steered.transcribe(
        RECORDINGS[0], generation_config=steered.generation
    )
    for settings, message in (
        (
            {"generation_config": GenerationConfig(repetition_penalty=1.2)},
            "repetition_penalty, which have no",
        ),
        ({"max_new_tokens": 0}, "generation: max_new_tokens"),
        ({"temperature": 0.5}, "generation: temperature"),
    ):
        with pytest.raises(ValueError, match=message):
            steered.generate(audio=RECORDINGS[0], **cast(Any, settings))
    with pytest.raises(ValueError, match="either a batch or audio"):
        steered.generate()


@pytest.mark.parametrize(
    ("window", "after", "frames"),
    [("unpadded", None, [50, 50, 50, 50]), ("full", None, [50, 50, 50, 50]), ("full", 0, [50, 13, 13, 13])],
)
def test_gates_are_those_of_the_audio_whatever_the_window(
    window: str, after: int | None, frames: list[int], tiny_variant: Any
) -> None:
    changes = {
        "encoder.window": window,
        "projector.downsample_after_layer": after,
        "steering.post_encoder": True,
    }
    model = SteerMoE.from_config(tiny_variant("steering", changes))
    second = RECORDINGS[0]
    gates = model.gates(second)
    assert [*gates] == ["0", "1", "2", "post"] and gates.frame_rate == 50
    assert [len(each) for each in gates.values()] == frames
    assert model.ask(second).gates is None
    found = model.ask([second], return_gates=True)[0].gates
    assert found is not None
    for name, each in gates.items():
        np.testing.assert_array_equal(found[name], each)
        np.testing.assert_allclose(each.sum(-1), 1, atol=1e-5)


def test_a_model_without_steering_has_no_gates(tiny_variant: Any) -> None:
    with pytest.raises(ValueError, match="method linear has no gates"):
        SteerMoE.from_config(tiny_variant("linear")).ask(RECORDINGS[0], return_gates=True)


# threads


def test_threads_that_share_a_model_or_an_llm_get_what_each_gets_alone(
    tiny_variant: Any, greedy: Any
) -> None:
    first = SteerMoE.from_config(tiny_variant("steering"))
    second = SteerMoE(tiny_variant("linear"), load=lambda section: (first.llm, first.tokenizer))
    how, sampled = greedy(6), greedy(6, strategy="sample", temperature=1.0)
    asked: list[Callable[[], Any]] = []
    for samples in RECORDINGS:
        turns = [{"role": "user", "content": [{"type": "audio", "audio": samples}]}]
        asked += [
            partial(first.transcribe, samples, generation_config=how),
            partial(second.transcribe, samples, generation_config=how),
            partial(first.transcribe, samples, generation_config=sampled, seed=5),
            partial(first.chat, turns, generation_config=how),
            lambda s=samples: [gates.tolist() for gates in first.gates(s).values()],
        ]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda call: call(), asked * 2))
    assert together == [call() for call in asked * 2]


def test_scales_change_between_calls_only(tiny_variant: Any) -> None:
    model = SteerMoE.from_config(tiny_variant("steering", {"steering.vector_std": 1.0}))
    assert model.steering is not None
    steering = model.steering

    def encoded() -> list[list]:
        return [gates.tolist() for gates in model.gates(RECORDINGS[1]).values()]

    legal = [encoded()]
    with steering.scaled(0.0):
        legal.append(encoded())
    ended = threading.Event()

    def turn() -> None:
        while not ended.is_set():
            for value in (0.0, 1.0):
                steering.set_scale(value)

    turning = threading.Thread(target=turn)
    turning.start()
    try:
        found = [encoded() for _ in range(20)]
    finally:
        ended.set()
        turning.join()
    assert all(gates in legal for gates in found)


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
def test_an_abandoned_generator_blocks_nobody(
    strategy: str, tiny_variant: Any, make_batch: MakeBatch, greedy: Any
) -> None:
    model = SteerMoE.from_config(tiny_variant("linear"))
    how = greedy(8, strategy=strategy, num_beams=2 if strategy == "beam" else None)
    abandoned = model.generate_all([make_batch()] * 2, how)
    next(abandoned)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(model.transcribe, RECORDINGS[0], generation_config=how)
        assert isinstance(call.result(60), str)
