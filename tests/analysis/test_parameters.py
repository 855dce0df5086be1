"""Counts and estimates against published tables, against the assembled model, and against torch's own counters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from steermoe import SteerMoE, config
from steermoe.analysis import parameters
from steermoe.analysis.parameters import encoder_shape, llm_shape, operations, plan, trained_parameters
from steermoe.config import VariantConfig
from steermoe.models.encoders.firered import FireRedConfig

PAPER = {
    "steering": config.Steering.model_validate({
        "num_experts": 8, "router": "shared", "groups": None, "stages": None, "layers": "all", "post_encoder": False,
        "hook_point": "output", "scale": "learned", "scale_init": 0.1, "vector_std": 0.01, "temperature": 1.0,
        "top_k": None, "gate_dropout": 0.0, "router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0,
    }),
    "lora": config.Lora.model_validate({
        "rank": 8, "alpha": 16, "dropout": 0.0, "targets": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    }),
    "projector": config.Projector.model_validate({
        "downsample": "average", "downsample_factor": 4, "downsample_after_layer": None, "projection": "linear",
        "width": None, "heads": None, "experts": None,
    }),
}  # fmt: skip
WIDTHS = {"qwen2.5-0.5b-instruct": 896, "qwen2.5-3b-instruct": 2048, "qwen2.5-7b-instruct": 3584}
SHAPES = {"whisper-large-v3": (32, 1280), "fireredasr-aed-l": (16, 1280), "conformer-512": (16, 512)}
# Millions of trained parameters, by encoder, experts and LLM of WIDTHS, to three decimals.
TABLE = {
    "whisper-large-v3": {
        2: (1.312, 2.787, 4.755), 4: (1.476, 2.951, 4.919), 8: (1.803, 3.279, 5.247), 16: (2.459, 3.935, 5.902),
    },
    "conformer-512": {
        2: (0.492, 1.083, 1.871), 4: (0.525, 1.116, 1.904), 8: (0.591, 1.182, 1.970), 16: (0.722, 1.313, 2.101),
    },
    "fireredasr-aed-l": {
        2: (1.230, 2.705, 4.673), 4: (1.312, 2.787, 4.755), 8: (1.476, 2.951, 4.919), 16: (1.803, 3.279, 5.247),
    },
}  # fmt: skip
SMALL: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
RUN: dict[str, Any] = {
    "hours": 100.6, "epochs": 10, "mean_seconds": 12.69, "prompt": 10, "target": 40, "peak": 790e12, "gpus": 1,
    "max_batch_seconds": 120.0,
}  # fmt: skip


@pytest.fixture
def paper(tiny_variant: Callable[..., VariantConfig]) -> Callable[..., VariantConfig]:
    def make(method: str = "steering", **steering: Any) -> VariantConfig:
        parts = {name: PAPER[name] if name == method else None for name in ("steering", "lora")}
        if steering:
            parts["steering"] = PAPER["steering"].model_copy(update=steering)
        variant = tiny_variant("linear")
        models = {"encoder": variant.encoder, "llm": variant.llm}
        half = {name: section.model_copy(update={"dtype": "bfloat16"}) for name, section in models.items()}
        return variant.model_copy(update={**parts, **half, "projector": PAPER["projector"]})

    return make


def planned(variant: VariantConfig, llm: str = "qwen2.5-7b-instruct", **changed: Any) -> dict[str, Any]:
    return plan(variant, encoder_shape("whisper-large-v3"), llm_shape(llm), **(RUN | changed))


@pytest.mark.parametrize("encoder", TABLE)
def test_every_cell_of_the_published_table(
    encoder: str, paper: Callable[..., VariantConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, width = SHAPES[encoder]
    sizes = FireRedConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=8)
    monkeypatch.setitem(parameters.ENCODERS, "conformer-512", sizes)
    llms = {name: llm_shape(name) for name in WIDTHS}
    for experts, row in TABLE[encoder].items():
        for (llm, llm_width), millions in zip(WIDTHS.items(), row, strict=True):
            variant = paper(num_experts=experts)
            found = trained_parameters(variant, encoder_shape(encoder), llms[llm])
            assert found == {
                "vectors": layers * experts * width, "scales": layers, "router": (width + 1) * layers * experts,
                "projection": (width + 1) * llm_width,
            }  # fmt: skip
            assert f"{sum(found.values()) / 1e6:.3f}" == f"{millions:.3f}"


def test_audit_of_whisper_with_seven_billion(paper: Callable[..., VariantConfig]) -> None:
    before = torch.get_rng_state()
    found = parameters.audit(paper(), "openai/whisper-large-v3", "Qwen/Qwen2.5-7B-Instruct")
    assert (found["encoder"], found["llm"]) == ("whisper-large-v3", "qwen2.5-7b-instruct")
    assert found["frozen"] == {"encoder": 636_968_960, "llm": 7_615_616_512}
    assert found["trained_total"] == 5_246_752
    assert found["trained_share"] == pytest.approx(5_246_752 / (5_246_752 + 636_968_960 + 7_615_616_512))
    lora = parameters.audit(paper("lora"), "whisper-large-v3", "qwen2.5-7b-instruct")
    assert lora["trained"] == {"projection": 4_591_104, "lora": 5_898_240}
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("spelling", [False, True])
def test_a_ctc_head_counts(spelling: bool, tiny_variant: Callable[..., VariantConfig]) -> None:
    ctc = {"steps": 1, "coef": 1.0, "soft_tokens": True, "spelling": spelling, "num_sampled": None}
    variant = tiny_variant("steering", {"training.ctc": ctc})
    groups = SteerMoE.from_config(variant).parameter_groups()
    found = parameters.audit(variant)["trained"]
    assert found["projection"] == sum(p.numel() for p in groups["projection"])


def test_presets_are_as_large_as_published() -> None:
    counts = {"qwen2.5-0.5b-instruct": 494_032_768, "qwen2.5-1.5b-instruct": 1_543_714_304}
    assert {name: llm_shape(name).parameters for name in counts} == counts
    conformer = encoder_shape("fireredasr-aed-l")
    assert conformer.parameters == 710_543_968 + 2 * 80  # and mean and deviation of its features
    assert (len(conformer.layers), conformer.width, conformer.max_seconds) == (16, 1280, 200)
    for name in (name for name in parameters.ENCODERS if "whisper" in name):
        found = encoder_shape(name)
        width, layers = found.width, len(found.layers)
        a_layer = 4 * width * width + 3 * width + 2 * 4 * width * width + 5 * width + 4 * width
        stem = width * 3 * (128 if "v3" in name else 80) + width + 3 * width * width + width
        assert found.parameters == layers * a_layer + stem + 1500 * width + 2 * width
        assert (found.inside, found.max_seconds) == (layers * 12 * width * width, 30)


@pytest.mark.parametrize("method", ["steering", "linear", "lora", "steering+lora+llm_lora", "first layers"])
def test_audit_counts_what_the_assembled_model_has(
    method: str, tiny_variant: Callable[..., VariantConfig]
) -> None:
    cut = {"encoder.layers": 2, "llm.layers": 1} if method == "first layers" else {}
    variant = tiny_variant("steering" if cut else method, {"projector.downsample": "concat"} | cut)
    model, found = SteerMoE.from_config(variant), parameters.audit(variant)
    assert found["trained_total"] == sum(tensor.numel() for tensor in model.trainable_state_dict().values())
    for part, module in (("encoder", model.encoder.model), ("llm", model.llm)):
        assert found["frozen"][part] == sum(p.numel() for p in module.parameters() if not p.requires_grad)
    assert found["encoder"] == variant.encoder.path + (" (2 layers)" if cut else "")


def test_other_architectures_are_known_or_refused(tmp_path: Path) -> None:
    for kind in ("wav2vec2-conformer", "wav2vec2-bert", "parakeet_encoder"):
        sizes = AutoConfig.for_model(kind, num_hidden_layers=3, hidden_size=64, num_attention_heads=4)
        sizes.save_pretrained(tmp_path / kind)
        found = encoder_shape(str(tmp_path / kind))
        assert (len(found.layers), found.width) == (3, 64)
        assert 0 < found.inside < found.parameters
    AutoConfig.for_model("hubert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a 'hubert'; shapes are known of: .*whisper"):
        encoder_shape(str(tmp_path))


def test_unknown_models_are_refused_without_asking_the_hub(paper: Callable[..., VariantConfig]) -> None:
    with pytest.raises(ValueError, match=r"encoder: found 'whisper'; legal: whisper-base, .* a folder"):
        encoder_shape("whisper")
    with pytest.raises(ValueError, match=r"llm: found 'qwen'; legal: qwen2\.5-0\.5b-instruct"):
        llm_shape("qwen")
    with pytest.raises(ValueError, match=r"lora\.targets: found .*, the layers have: .*w_qs"):
        parameters.audit(paper("lora"), "fireredasr-aed-l", "qwen2.5-0.5b-instruct")
    with pytest.raises(ValueError, match=r"encoder\.layers: found 7, the model has 6; legal: all, or 1 to 6"):
        encoder_shape("whisper-base", depth=7)


# TFLOP worked out by hand for Whisper-large-v3 + Qwen2.5-7B, clips of 30 s and of 12.69 s.
@pytest.mark.parametrize(
    ("seconds", "expected"), [(30.0, (2.27, 2.72, 5.64, 5.69)), (12.69, (0.87, 0.93, 2.79, 2.80))]
)
def test_operations_of_a_clip(
    seconds: float, expected: tuple[float, ...], paper: Callable[..., VariantConfig]
) -> None:
    shapes = encoder_shape("whisper-large-v3"), llm_shape("qwen2.5-7b-instruct")
    found = operations(paper(), *shapes, trained_parameters(paper(), *shapes), seconds, 10, 40)
    assert [value / 1e12 for value in found.values()][:4] == pytest.approx(expected, rel=0.03)
    assert found["trained"] < 0.01 * sum(found.values())


def small(dtype: torch.dtype, attention: str) -> tuple[Any, Any]:
    sizes = WhisperConfig(d_model=128, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=512)
    encoder = WhisperEncoder._from_config(sizes, dtype=dtype, attn_implementation=attention).requires_grad_(
        False
    )
    llm_sizes = Qwen2Config(vocab_size=500, num_hidden_layers=3, tie_word_embeddings=False, **SMALL)
    llm = AutoModelForCausalLM.from_config(llm_sizes, dtype=dtype, attn_implementation=attention)
    return encoder.eval(), llm.requires_grad_(False)


def test_forward_operations_are_those_that_torch_counts(
    paper: Callable[..., VariantConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, llm = small(torch.float32, "eager")  # torch counts no fused attention on a processor
    monkeypatch.setitem(parameters.ENCODERS, "small", encoder.config)
    monkeypatch.setitem(parameters.LLMS, "small", llm.config)
    found = operations(paper(), encoder_shape("small"), llm_shape("small"), {}, 30.0, 0, 0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, 80, 3000))
    assert found["encoder_forward"] == pytest.approx(counter.get_total_flops(), rel=1e-3)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        llm.base_model(inputs_embeds=torch.zeros(1, 375, 128), use_cache=False)
    causal = 2 * 375**2 * 128 * 3  # torch counts attention as if every position saw all others
    assert found["llm_forward"] + causal == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_kept_bytes_are_those_that_autograd_keeps(dtype: torch.dtype) -> None:
    encoder, llm = small(dtype, "sdpa")
    hidden = torch.randn(1, 100, 128, dtype=dtype, requires_grad=True)

    def through_encoder() -> Any:
        output = hidden
        for layer in encoder.layers:
            found = layer(output, None)
            output = found[0] if isinstance(found, tuple) else found
        return output

    def through_llm() -> Any:
        return llm.base_model(inputs_embeds=hidden, use_cache=False)

    for run, model, layer in (
        (through_encoder, encoder, encoder.layers[0]),
        (through_llm, llm, llm.base_model.layers[0]),
    ):
        weights = {parameter.data_ptr() for parameter in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor, kept: dict = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run()
        measured = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)
        assert 300 * parameters.kept_bytes(layer, dtype.itemsize) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(("layers", "below"), [("all", 31), ([0], 31), ([30, 12], 19), ([31], 0)])
def test_a_gradient_passes_the_layers_above_the_first_steered_one(
    layers: Any, below: int, paper: Callable[..., VariantConfig]
) -> None:
    assert parameters.backpropagated(paper(layers=layers), 32) == below
    assert parameters.backpropagated(paper("linear"), 32) == 0
    assert parameters.backpropagated(paper("lora"), 32) == 32


# Worked out by hand: FLOP, and hours at the peak of 790 TFLOP/s.
@pytest.mark.parametrize(
    ("method", "llm", "case", "total", "hours"),
    [
        ("steering", "qwen2.5-7b-instruct", "padded to 30 s", 4.66e18, 1.64),
        ("steering", "qwen2.5-7b-instruct", "not padded", 2.11e18, 0.74),
        ("linear", "qwen2.5-7b-instruct", "not padded, encoder's output kept", 1.62e18, 0.57),
        ("steering", "qwen2.5-3b-instruct", "not padded", 1.20e18, 0.42),
    ],
)
def test_published_floor_of_a_run(
    method: str, llm: str, case: str, total: float, hours: float, paper: Callable[..., VariantConfig]
) -> None:
    found = planned(paper(method), llm)["cases"][case]
    assert (found["operations"], found["hours_at_peak"]) == pytest.approx((total, hours), rel=0.03)
    assert found["audio_hours_per_device_hour"] == pytest.approx(1006 / hours, rel=0.03)
    assert found["hours"] == pytest.approx((found["hours_at_peak"] / 0.6, found["hours_at_peak"] / 0.3))
    four = planned(paper(method), llm, gpus=4)["cases"][case]
    assert four["hours_at_peak"] == pytest.approx(found["hours_at_peak"] / 4)


def test_memory_of_the_modes(paper: Callable[..., VariantConfig]) -> None:
    one, four = planned(paper()), planned(paper(), gpus=4)
    parts = one["parts"]
    assert parts["LLM's weights"] == 2 * 7_615_616_512 and parts["trained optimizer"] == 8 * 5_246_752
    assert one["memory"]["plain"][0] == pytest.approx(sum(parts.values()))
    assert one["memory"]["zero2"] == one["memory"]["zero3"] == one["memory"]["plain"]
    states = sum(parts[f"trained {name}"] for name in ("gradients", "optimizer"))
    plain, zero2, zero3 = (four["memory"][mode][0] for mode in ("plain", "zero2", "zero3"))
    assert plain - zero2 == pytest.approx(0.75 * states) and zero3 < zero2
    device, host = one["memory"]["zero3-offload"]
    assert host > parts["LLM's weights"] and device < one["memory"]["plain"][0] - 0.7 * parts["LLM's weights"]


def test_activations_follow_method_batch_and_window(paper: Callable[..., VariantConfig]) -> None:
    def kept(variant: VariantConfig, seconds: float = 120.0) -> float:
        return planned(variant, max_batch_seconds=seconds)["parts"]["activations"]

    assert kept(paper()) > kept(paper("linear")) and kept(paper("lora")) > kept(paper("linear"))
    assert kept(paper(), 8 * 12.7) == pytest.approx(8 * kept(paper(), 12.7))
    full = paper().encoder.model_copy(update={"window": "full"})
    padded = paper().model_copy(update={"encoder": full})
    assert kept(padded) == pytest.approx(kept(paper()), rel=0.15)  # 4 rows of 30 s, or 9 of 12.69 s
    with pytest.raises(ValueError, match=r"mean-seconds: found 31; whisper-large-v3 takes at most 30 s"):
        planned(paper(), mean_seconds=31)
