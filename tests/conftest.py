"""Tiny base models with random weights, in the format of the real ones, and variants over them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

pytest_plugins = ["tests.speech"]
settings.register_profile("steermoe", deadline=None)  # a loaded machine is no fault of an example
settings.load_profile("steermoe")

WORDS = (
    "the",
    "cat",
    "dog",
    "red",
    "blue",
    "one",
    "two",
    "three",
    "sings",
    "is",
    "please",
    "transcribe",
    "audio",
)
CHAT_TEMPLATE = (  # ChatML as Qwen has it, in short
    "{% if tools or messages[0].role == 'system' %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}<|im_end|>\n{% endif %}"
    "{% for turn in messages if turn.role != 'system' %}"
    "<|im_start|>{{ turn.role }}\n{{ turn.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TinyVariant = Callable[..., Any]
RATES = {
    "steering": ["projection", "vectors", "router"],
    "linear": ["projection"],
    "lora": ["projection", "lora"],
}
STEERING: dict[str, Any] = {
    "num_experts": 4, "router": "shared", "groups": None, "stages": None, "layers": "all", "post_encoder": False,
    "hook_point": "output", "scale": "learned", "scale_init": 0.1, "vector_std": 0.01, "temperature": 1.0,
    "top_k": None,
    "gate_dropout": 0.0, "router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0,
}  # fmt: skip
PROJECTOR: dict[str, Any] = {
    "downsample": "average", "downsample_factor": 4, "downsample_after_layer": None, "projection": "linear",
    "width": None, "heads": None,
    "experts": None,
}  # fmt: skip
LORA: dict[str, Any] = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "v_proj", "fc1"]}


@pytest.fixture(scope="session")
def begin_repository() -> Callable[[Callable[..., Any]], None]:
    """`begin_repository(shell)`: a first commit for git and DVC, by `shell(*words)`."""
    steps = (
        "git init -q", "git config user.email test@example.com", "git config user.name test",
        "dvc init -q", "dvc config core.analytics false", "git add -A", "git commit -qm begin",
    )  # fmt: skip

    def begin(shell: Callable[..., Any]) -> None:
        for step in steps:
            shell(*step.split())

    return begin


@pytest.fixture(scope="session")
def make_steering() -> Callable[..., Any]:
    """`make_steering(router="mixed", ...)`: a section `steering` of 4 experts."""
    from steermoe.config import Steering

    return lambda **changes: Steering.model_validate(STEERING | changes)


@pytest.fixture(scope="session")
def make_projector() -> Callable[..., Any]:
    """`make_projector(downsample="max", ...)`: a section `projector` of kernel 4."""
    from steermoe.config import Projector

    return lambda **changes: Projector.model_validate(PROJECTOR | changes)


@pytest.fixture(scope="session")
def tiny_encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper encoder of 3 layers of width 32 for up to 4 s, with a CTC head over words beside it."""
    import torch
    from safetensors.torch import save_file
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    folder = tmp_path_factory.mktemp("base") / "encoder"
    torch.manual_seed(1)
    sizes = WhisperConfig(
        d_model=32, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=64, num_mel_bins=80,
        max_source_positions=200, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64,
        vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, init_std=0.2,
    )  # fmt: skip
    encoder = WhisperEncoder(sizes)
    encoder.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80, chunk_length=4).save_pretrained(folder)
    head = {"weight": torch.randn(len(WORDS) + 1, 32), "bias": torch.zeros(len(WORDS) + 1)}
    save_file(head, folder / "ctc_head.safetensors")
    (folder / "ctc_units.json").write_text(json.dumps(list(WORDS)))
    return folder


@pytest.fixture(scope="session")
def tiny_video_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of 2 layers of width 16 on frames of 8 x 8 in patches of 4, so 5 tokens a frame."""
    import torch
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("base") / "video"
    torch.manual_seed(3)
    sizes = ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, initializer_range=0.3,
    )  # fmt: skip
    ViTModel(sizes, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def video_section(tiny_video_dir: Path) -> Callable[..., dict[str, Any]]:
    """`video_section(top_k=2)`: values of a section `video` of one token a frame; changes are of its steering."""

    def section(**steering: Any) -> dict[str, Any]:
        return {
            "encoder": {"name": "vit", "path": str(tiny_video_dir), "revision": None, "dtype": "float32"},
            "steering": STEERING | steering,
            "projector": PROJECTOR | {"downsample_factor": 5},
        }

    return section


def _save_llm(folder: Path, kind: str, chat_template: str | None = None, **sizes: Any) -> Path:
    """A random LLM with a byte-level BPE tokenizer, and generation settings that nothing may heed.

    With a chat template, the tokenizer has ChatML's special tokens too.
    """
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [" ".join(WORDS)] * 3, vocab_size=360, min_frequency=1, special_tokens=["<|endoftext|>"]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    if chat_template is not None:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    settings = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, initializer_range=0.2, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **{"hidden_size": 32, "intermediate_size": 64} | sizes,
    )  # fmt: skip
    torch.manual_seed(2)
    llm = AutoModelForCausalLM.from_config(settings)
    llm.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_k=20, repetition_penalty=1.3,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    llm.save_pretrained(folder)
    task = {"task": "repeat", "prompt": "please transcribe the cat", "target": "the cat"}
    (folder / "text_tasks.jsonl").write_text(json.dumps(task) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_llm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of 2 layers of width 32, embeddings tied, whose generation_config.json asks for sampling."""
    return _save_llm(tmp_path_factory.mktemp("base") / "llm", "qwen2", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a Llama, embeddings not tied."""
    return _save_llm(tmp_path_factory.mktemp("base") / "llama", "llama", tie_word_embeddings=False)


@pytest.fixture(scope="session")
def tiny_chat_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as an instruction-tuned LLM has it: with a chat template, whose turns end with <|im_end|>."""
    folder = tmp_path_factory.mktemp("base") / "chat"
    return _save_llm(folder, "qwen2", chat_template=CHAT_TEMPLATE, tie_word_embeddings=True)


@pytest.fixture(scope="session")
def save_tiny_llm() -> Callable[..., Path]:
    """`save_tiny_llm(folder, model_type, **sizes)` writes a tiny LLM of another architecture."""
    return _save_llm


@pytest.fixture(scope="session")
def greedy() -> Callable[..., Any]:
    """`greedy(7, strategy="beam", num_beams=3)`: a generation section of at most 7 new tokens."""
    from steermoe.config import Generation

    def section(max_new_tokens: int, **changes: Any) -> Generation:
        values: dict[str, Any] = {
            "min_new_tokens": 0, "strategy": "greedy", "num_beams": None, "temperature": None, "top_p": None,
            "no_repeat_ngram_size": None, "max_repeats": 8, "ctc_weight": 0.0,
        }  # fmt: skip
        return Generation.model_validate({"max_new_tokens": max_new_tokens, **values, **changes})

    return section


@pytest.fixture(scope="session")
def tiny_variant(tiny_encoder_dir: Path, tiny_llm_dir: Path) -> TinyVariant:
    """`tiny_variant(method, {"dotted.path": value})`: the configuration of a variant over the tiny base models."""
    from steermoe.config import VariantConfig

    def variant(method: str, overrides: Mapping[str, Any] | None = None) -> VariantConfig:
        ingredients = method.split("+")
        rates = {part: 1e-2 for one in ingredients for part in RATES.get(one, [one])}
        values: dict[str, Any] = {
            "name": f"tiny-{method}",
            "seed": 5,
            "method": method,
            "steering": None,
            "lora": None,
            "llm_lora": None,
            "projector": dict(PROJECTOR),
            "prompts": {
                "format": "plain", "system": None,
                "transcribe": "please transcribe the audio: ", "answer": "question is: {question}",
                "caption": "describe: ", "summarize": "summarize: ", "emotion": "what emotion? ",
            },
            "encoder": {
                "name": "whisper", "path": str(tiny_encoder_dir), "revision": None, "dtype": "float32",
                "window": "unpadded", "layers": "all",
            },
            "llm": {
                "path": str(tiny_llm_dir), "revision": None, "dtype": "float32", "quantization": "none",
                "layers": "all",
            },
            "video": None,
            "training": {
                "max_steps": 6, "epochs": None, "max_batch_seconds": 4.0, "max_seconds": 4.0, "warmup_steps": 1,
                "schedule": "cosine",
                "weight_decay": 0.01, "max_grad_norm": 1.0, "steering_max_grad_norm": 1.0, "precision": "float32",
                "gradient_checkpointing": False, "eval_steps": 2, "criterion": "loss", "wer_rows": None,
                "patience": 5, "init_from": None, "ctc": None, "distillation": None,
                "learning_rates": rates, "wer_normalizers": {}, "wer_ctc_weight": 0.0,
            },
            "train_splits": {"tiny": ["train"]},
            "dev_splits": {"tiny": ["dev"]},
        }  # fmt: skip
        if "steering" in ingredients:
            values["steering"] = dict(STEERING)
        if "lora" in ingredients:
            values["lora"] = dict(LORA)
        if "llm_lora" in ingredients:
            values["llm_lora"] = LORA | {"targets": ["q_proj", "v_proj"]}
        for path, value in (overrides or {}).items():
            *sections, key = path.split(".")
            section = values
            for name in sections:
                section = section[name]
            section[key] = value
        return VariantConfig.from_json(json.dumps(values))

    return variant
