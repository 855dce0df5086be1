"""Parameter counts, against the formulas of the published tables and against the assembled model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from steermoe import SteerMoE, config
from steermoe.analysis import presets
from steermoe.analysis.audit import Audit, Sections, audit, trained_parameters
from steermoe.models.encoders.firered import FireRedConfig
from tests.analysis.paper import PAPER_LORA, PAPER_PROJECTOR, PAPER_STEERING

WIDTHS = {"qwen2.5-0.5b-instruct": 896, "qwen2.5-3b-instruct": 2048, "qwen2.5-7b-instruct": 3584}
ENCODERS = {"whisper-large-v3": (32, 1280), "fireredasr-aed-l": (16, 1280), "conformer-512": (16, 512)}
# Millions of trained parameters, by encoder, experts and width of the LLM, to three digits behind the point.
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
CELLS = [
    (encoder, experts, llm, millions)
    for encoder, rows in TABLE.items()
    for experts, row in rows.items()
    for llm, millions in zip(WIDTHS, row, strict=True)
]


@pytest.fixture
def sections() -> Callable[..., Sections]:
    def make(name: str, num_experts: int = 8) -> Sections:
        steering = PAPER_STEERING.model_copy(update={"num_experts": num_experts})
        return Sections(
            name,
            steering if name == "steering" else None,
            PAPER_LORA if name == "lora" else None,
            PAPER_PROJECTOR,
        )

    return make


@pytest.fixture(scope="module")
def llms() -> dict[str, presets.LlmShape]:
    return {name: presets.llm_shape(name) for name in WIDTHS}


@pytest.mark.parametrize(("encoder", "experts", "llm", "millions"), CELLS)
def test_every_cell_of_the_published_table(
    encoder: str,
    experts: int,
    llm: str,
    millions: float,
    sections: Callable[..., Sections],
    llms: dict[str, presets.LlmShape],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers, width = ENCODERS[encoder]
    sizes = FireRedConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=8)
    monkeypatch.setitem(presets.ENCODERS, "conformer-512", sizes)
    found = trained_parameters(sections("steering", experts), presets.encoder_shape(encoder), llms[llm])
    assert found["vectors"] == layers * experts * width
    assert found["router"] == (width + 1) * layers * experts
    assert found["scales"] == layers
    assert found["projection"] == (width + 1) * WIDTHS[llm]
    assert f"{sum(found.values()) / 1e6:.3f}" == f"{millions:.3f}"


def test_whisper_with_seven_billion(sections: Callable[..., Sections]) -> None:
    found = audit(sections("steering"), "openai/whisper-large-v3", "Qwen/Qwen2.5-7B-Instruct")
    assert (found.encoder, found.llm) == ("whisper-large-v3", "qwen2.5-7b-instruct")
    assert found.total == 5_246_752
    assert found.frozen == {"encoder": 636_968_960, "llm": 7_615_616_512}
    assert found.share == pytest.approx(5_246_752 / (5_246_752 + 636_968_960 + 7_615_616_512))


def test_lora_of_the_published_baseline(sections: Callable[..., Sections]) -> None:
    found = audit(sections("lora"), "whisper-large-v3", "qwen2.5-7b-instruct")
    assert found.trained == {"projection": 4_591_104, "lora": 5_898_240}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen2.5-0.5b-instruct", 494_032_768),
        ("qwen2.5-1.5b-instruct", 1_543_714_304),
        ("qwen2.5-3b-instruct", 3_085_938_688),
        ("qwen2.5-7b-instruct", 7_615_616_512),
    ],
)
def test_llm_has_as_many_parameters_as_its_checkpoint(name: str, parameters: int) -> None:
    found = presets.llm_shape(name)
    assert found.parameters_in_all == parameters
    assert all(parameter.is_meta for parameter in found.model.parameters())


def test_the_conformer_is_as_large_as_published() -> None:
    found = presets.encoder_shape("fireredasr-aed-l")
    assert (
        found.parameters_in_all == 710_543_968 + 2 * 80
    )  # as published, and mean and deviation of its features
    assert (len(found.layers), found.width, found.max_seconds) == (16, 1280, 200)


@pytest.mark.parametrize("name", [name for name in presets.ENCODERS if "whisper" in name])
def test_whisper_preset_is_whisper(name: str) -> None:
    found = presets.encoder_shape(name)
    width, layers = found.width, len(found.layers)
    a_layer = 4 * width * width + 3 * width + 2 * 4 * width * width + 5 * width + 4 * width
    stem = width * 3 * (128 if "v3" in name else 80) + width + 3 * width * width + width
    assert found.parameters_in_all == layers * a_layer + stem + 1500 * width + 2 * width
    assert found.matmul_weights == layers * 12 * width * width
    assert found.max_seconds == 30


@pytest.mark.parametrize("method_name", ["steering", "linear", "lora", "steering+lora+llm_lora"])
@pytest.mark.parametrize("downsample", ["average", "concat"])
def test_audit_counts_what_the_assembled_model_trains(
    tiny_variant: Callable[..., config.VariantConfig], method_name: str, downsample: str
) -> None:
    variant = tiny_variant(method_name, {"projector.downsample": downsample})
    model = SteerMoE.from_config(variant)
    found = audit(Sections.of(variant), variant.encoder.path, variant.llm.path)
    assert found.total == sum(tensor.numel() for tensor in model.trainable_state_dict().values())
    assert found.part("projection") == presets.count(model.projection)
    frozen = [p for p in model.encoder.model.parameters() if not p.requires_grad]
    assert found.frozen["encoder"] == sum(p.numel() for p in frozen)
    assert found.frozen["llm"] == sum(p.numel() for p in model.llm.parameters() if not p.requires_grad)


def test_steering_of_some_layers_alone(tiny_variant: Callable[..., config.VariantConfig]) -> None:
    variant = tiny_variant("steering", {"steering.layers": [2]})
    whole = tiny_variant("steering")
    some, all_layers = (audit(Sections.of(a), a.encoder.path, a.llm.path) for a in (variant, whole))
    assert 3 * some.part("vectors") == all_layers.part("vectors")


def test_presets_of_other_architectures_have_layers_of_their_width(tmp_path: Path) -> None:
    from transformers import AutoConfig

    for kind in ("wav2vec2-conformer", "wav2vec2-bert", "parakeet_encoder"):
        sizes = AutoConfig.for_model(kind, num_hidden_layers=3, hidden_size=64, num_attention_heads=4)
        sizes.save_pretrained(tmp_path / kind)
        found = presets.encoder_shape(str(tmp_path / kind))
        assert (len(found.layers), found.width) == (3, 64)
        assert 0 < found.matmul_weights < found.parameters_in_all


def test_matmul_weights_are_those_of_linear_maps_and_convolutions() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Conv1d(4, 6, 3, groups=2), nn.Embedding(9, 9))
    assert presets.matmul_weights(module) == 15 + 6 * 2 * 3


def test_unknown_models_are_refused_without_asking_the_hub(sections: Callable[..., Sections]) -> None:
    with pytest.raises(ValueError, match=r"encoder: found 'whisper'; legal: whisper-base, .* a folder"):
        presets.encoder_shape("whisper")
    with pytest.raises(ValueError, match=r"llm: found 'qwen'; legal: qwen2\.5-0\.5b-instruct"):
        presets.llm_shape("qwen")
    with pytest.raises(ValueError, match=r"lora\.targets: found .*, the layers have: .*w_qs"):
        audit(sections("lora"), "fireredasr-aed-l", "qwen2.5-0.5b-instruct")


def test_encoder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model("hubert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a 'hubert'; shapes are known of: .*whisper"):
        presets.encoder_shape(str(tmp_path))


def test_part_of_an_audit_that_is_not_there(sections: Callable[..., Sections]) -> None:
    found = Audit("a", "b", sections("linear"), {"encoder": 10, "llm": 20}, {"projection": 3})
    assert [found.part(name) for name in ("lora", "projection", "trained", "llm")] == [0, 3, 3, 20]
    with pytest.raises(ValueError, match="part: found 'head'; legal: vectors"):
        found.part("head")


def test_counting_leaves_the_random_state_alone(sections: Callable[..., Sections]) -> None:
    before = torch.get_rng_state()
    audit(sections("steering"), "whisper-base", "qwen2.5-0.5b-instruct")
    assert torch.equal(before, torch.get_rng_state())


def test_first_layers_are_counted_as_they_are_loaded(
    tiny_variant: Callable[..., config.VariantConfig],
) -> None:
    variant = tiny_variant("steering", {"encoder.layers": 2, "llm.layers": 1})
    model, found = (
        SteerMoE.from_config(variant),
        audit(Sections.of(variant), variant.encoder.path, variant.llm.path),
    )
    assert found.frozen == {
        "encoder": sum(p.numel() for p in model.encoder.parameters() if not p.requires_grad),
        "llm": sum(p.numel() for p in model.llm.parameters()),
    }
    assert found.total == sum(p.numel() for p in model.trainable_state_dict().values())
    assert found.encoder == f"{variant.encoder.path} (2 layers)"
    whole, cut = presets.encoder_shape("whisper-base"), presets.encoder_shape("whisper-base", depth=2)
    assert (cut.stem_weights, 3 * cut.matmul_weights) == (whole.stem_weights, whole.matmul_weights)
    cut_llm, whole_llm = (presets.llm_shape("qwen2.5-0.5b-instruct", depth=depth) for depth in (6, "all"))
    assert (4 * cut_llm.matmul_weights, len(cut_llm.layers)) == (whole_llm.matmul_weights, 6)
    with pytest.raises(ValueError, match=r"encoder\.layers: found 7, the model has 6; legal: all, or 1 to 6"):
        presets.encoder_shape("whisper-base", depth=7)
