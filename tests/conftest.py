"""Tiny base models with random weights, in the format of the real ones, and arms over them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

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
TinyArm = Callable[..., Any]
PARTS = {
    "steering": ["projection", "vectors", "router"],
    "linear": ["projection"],
    "lora": ["projection", "lora"],
}


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


def _save_llm(folder: Path, kind: str, **sizes: Any) -> Path:
    """A random LLM with a byte-level BPE tokenizer, and generation settings that nothing may heed."""
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
    tokenizer.save_pretrained(folder)
    settings = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **sizes,
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
def save_tiny_llm() -> Callable[..., Path]:
    """`save_tiny_llm(folder, model_type, **sizes)` writes a tiny LLM of another architecture."""
    return _save_llm


@pytest.fixture(scope="session")
def tiny_arm(tiny_encoder_dir: Path, tiny_llm_dir: Path) -> TinyArm:
    """`tiny_arm(method, {"dotted.path": value})`: the configuration of an arm over the tiny base models."""
    from steermoe.config import ArmConfig

    def arm(method: str, overrides: Mapping[str, Any] | None = None) -> ArmConfig:
        values: dict[str, Any] = {
            "name": f"tiny-{method}",
            "seed": 5,
            "method": method,
            "steering": None,
            "lora": None,
            "bridge": {"downsample": "average", "kernel": 4, "projection": "linear"},
            "prompts": {"transcribe": "please transcribe the audio: ", "answer": "question is: {question}"},
            "encoder": {"name": "whisper", "path": str(tiny_encoder_dir), "dtype": "float32", "window": "unpadded"},
            "llm": {"path": str(tiny_llm_dir), "dtype": "float32"},
            "training": {
                "steps": 6, "batch_seconds": 4.0, "max_seconds": 4.0, "warmup_steps": 1, "schedule": "cosine",
                "weight_decay": 0.01, "clip": 1.0, "steering_clip": 1.0, "precision": "float32",
                "eval_every": 2, "patience": 5, "learning_rates": dict.fromkeys(PARTS[method], 1e-2),
            },
            "train_splits": {"tiny": ["train"]},
            "dev_splits": {"tiny": ["dev"]},
        }  # fmt: skip
        if method == "steering":
            values["steering"] = {
                "num_experts": 4, "router": "shared", "layers": "all", "scale_init": 0.1, "vector_std": 0.01
            }  # fmt: skip
        if method == "lora":
            values["lora"] = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "v_proj", "fc1"]}
        for path, value in (overrides or {}).items():
            *sections, key = path.split(".")
            section = values
            for name in sections:
                section = section[name]
            section[key] = value
        return ArmConfig.from_json(json.dumps(values))

    return arm
