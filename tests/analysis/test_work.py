"""Operations and saved activations, against torch's own counters on real models and against published floors."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen2Config, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from steermoe.analysis import presets
from steermoe.analysis.audit import Sections, trained_parameters
from steermoe.analysis.work import Clip, Work, backpropagated, clip, kept_bytes, work
from tests.analysis.paper import PAPER_LORA, PAPER_PROJECTOR, PAPER_STEERING

FRAMES = 100
SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def sections() -> Sections:
    return Sections("steering", PAPER_STEERING, None, PAPER_PROJECTOR)


def small_llm(dtype: torch.dtype, attention: str = "sdpa") -> Any:
    sizes = Qwen2Config(vocab_size=500, num_hidden_layers=3, **SMALL)
    llm = AutoModelForCausalLM.from_config(sizes, dtype=dtype, attn_implementation=attention)
    return llm.requires_grad_(False)


def small_encoder(dtype: torch.dtype, attention: str = "sdpa") -> Any:
    sizes = WhisperConfig(d_model=128, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=512)
    encoder = WhisperEncoder._from_config(sizes, dtype=dtype, attn_implementation=attention)
    return encoder.requires_grad_(False).eval()


def through(encoder: Any, hidden_BSD: torch.Tensor) -> torch.Tensor:
    for layer in encoder.layers:
        output = layer(hidden_BSD, None)
        hidden_BSD = output[0] if isinstance(output, tuple) else output
    return hidden_BSD


# GPU hours and TFLOP: facts worked out by hand for Whisper-large-v3 + Qwen2.5-7B, clips of 30 s and of 12.69 s.
@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (
            30.0,
            {"encoder_forward": 2.27, "encoder_backward": 2.72, "llm_forward": 5.64, "llm_backward": 5.69},
        ),
        (
            12.69,
            {"encoder_forward": 0.87, "encoder_backward": 0.93, "llm_forward": 2.79, "llm_backward": 2.80},
        ),
    ],
)
def test_published_floor_of_a_clip(seconds: float, expected: dict[str, float], sections: Sections) -> None:
    encoder = presets.encoder_shape("whisper-large-v3")
    llm = presets.llm_shape("qwen2.5-7b-instruct")
    heard = clip(seconds, encoder, sections, prompt_tokens=10, target_tokens=40)
    assert (heard.frames, heard.audio) == ((1500, 375) if seconds == 30 else (634, 159))
    found = work(heard, encoder, llm, sections, trained_parameters(sections, encoder, llm))
    for name, value in expected.items():
        assert getattr(found, name) / 1e12 == pytest.approx(value, rel=0.03), name
    assert found.total / 1e12 == pytest.approx(16.32 if seconds == 30 else 7.39, rel=0.03)
    assert found.trained < 0.01 * found.total


def test_forward_operations_are_those_that_torch_counts(
    sections: Sections, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = Qwen2Config(vocab_size=500, num_hidden_layers=3, tie_word_embeddings=False, **SMALL)
    monkeypatch.setitem(presets.LLMS, "small", sizes)
    monkeypatch.setitem(
        presets.ENCODERS,
        "small",
        WhisperConfig(d_model=128, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=512),
    )
    # "eager", for torch counts no fused attention on a processor
    encoder, llm = small_encoder(torch.float32, "eager"), small_llm(torch.float32, "eager")
    heard = Clip(frames=1500, audio=FRAMES, prompt=0, target=0)
    found = work(heard, presets.encoder_shape("small"), presets.llm_shape("small"), sections, {})
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, 80, 3000))
    assert found.encoder_forward == pytest.approx(counter.get_total_flops(), rel=1e-3)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        llm.base_model(inputs_embeds=torch.zeros(1, FRAMES, 128), use_cache=False)
    causal = 2 * FRAMES**2 * 128 * 3  # torch counts attention as if every position saw all others
    assert found.llm_forward + causal == pytest.approx(counter.get_total_flops(), rel=1e-3)


def kept(run: Callable[[], Any], models: list[Any]) -> int:
    """Bytes that autograd keeps while `run`, weights aside."""
    weights = {parameter.data_ptr() for model in models for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    tensors = []  # held, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        tensors.append(tensor)
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tensors.append(run())
    return sum(sizes.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_kept_bytes_are_those_that_autograd_keeps(dtype: torch.dtype) -> None:
    encoder, llm = small_encoder(dtype), small_llm(dtype)
    size = torch.empty(0, dtype=dtype).element_size()
    hidden = torch.randn(1, FRAMES, 128, dtype=dtype, requires_grad=True)
    measured = kept(lambda: through(encoder, hidden), [encoder])
    assert 3 * FRAMES * kept_bytes(encoder.layers[0], size) == pytest.approx(measured, rel=0.1)
    measured = kept(lambda: llm.base_model(inputs_embeds=hidden, use_cache=False), [llm])
    assert 3 * FRAMES * kept_bytes(llm.base_model.layers[0], size) == pytest.approx(measured, rel=0.1)


def test_a_layer_without_linear_maps_keeps_nothing() -> None:
    assert kept_bytes(torch.nn.Identity(), 2) == 0


@pytest.mark.parametrize(
    ("layers", "below"), [("all", 31), ([0], 31), ([30, 12], 19), ([31], 0)], ids=["all", "0", "12+", "31"]
)
def test_gradient_goes_through_the_layers_above_the_first_steered_one(
    layers: Any, below: int, sections: Sections
) -> None:
    assert sections.steering is not None
    steering = sections.steering.model_copy(update={"layers": layers})
    assert backpropagated(replace(sections, steering=steering), 32) == below


def test_gradient_of_the_other_methods(sections: Sections) -> None:
    assert backpropagated(Sections("linear", None, None, sections.projector), 32) == 0
    assert backpropagated(Sections("lora", None, PAPER_LORA, sections.projector), 32) == 32


def test_total_is_the_sum() -> None:
    assert Work(1, 2, 3, 4, 5).total == 15
