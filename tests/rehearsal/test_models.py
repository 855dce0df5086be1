"""The models of a rehearsal are of the real classes, and are loaded as the real ones are."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from steermoe.config import Encoder, Generation, Llm
from steermoe.config.section import Dtype
from steermoe.evaluation.decoders import own_decoder
from steermoe.models.encoders import load_encoder
from steermoe.models.encoders.firered import FireRedConformer
from steermoe.models.llm import load_llm
from steermoe.rehearsal.models import make_models


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rehearsal")
    make_models(3, out)
    return out


def section(name: str, folder: Path, dtype: Dtype, window: Literal["full", "unpadded"]) -> Encoder:
    return Encoder(name=name, path=str(folder), revision=None, dtype=dtype, window=window, layers="all")


def test_the_same_seed_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    make_models(3, tmp_path)
    for path in sorted(path for path in made.rglob("*") if path.is_file()):
        assert (tmp_path / path.relative_to(made)).read_bytes() == path.read_bytes(), path


def test_whisper_is_large_v3_in_small(made: Path) -> None:
    whole = WhisperForConditionalGeneration.from_pretrained(made / "whisper")
    assert (whole.config.num_mel_bins, whole.config.max_source_positions) == (128, 1500)
    encoder = load_encoder(section("whisper", made / "whisper", "bfloat16", "full"))
    assert encoder.max_seconds == 30
    features = encoder.features(0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32))
    with torch.no_grad():
        hidden, lengths = encoder.stem(features[None], torch.tensor([features.shape[1]]))
    assert hidden.shape[:2] == (1, 1500) and lengths.tolist() == [1500]


def test_whispers_decoder_is_told_the_language(made: Path, greedy) -> None:
    generation: Generation = greedy(4)
    system = own_decoder(section("whisper", made / "whisper", "float32", "full"), generation, 0)
    assert system is not None and "told the language" in system.decoding


def test_the_conformer_is_fireredasrs(made: Path) -> None:
    encoder = load_encoder(section("firered", made / "conformer", "bfloat16", "unpadded"))
    assert isinstance(encoder.model, FireRedConformer) and encoder.features.channels == 80
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    assert abs(float(encoder.features(noise).mean())) < 3  # its CMVN is about right


@pytest.mark.parametrize("name", ["qwen", "qwen-small"])
def test_the_llm_is_an_instruction_tuned_qwen(made: Path, name: str) -> None:
    llm, tokenizer = load_llm(
        Llm(path=str(made / name), revision=None, dtype="bfloat16", quantization="none", layers="all")
    )
    assert isinstance(llm, Qwen2ForCausalLM)
    for text in (
        "please transcribe the audio content into text: ",
        "请逐字复述音频内容为文字",
        "vergaß, sœur",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True
    )
    assert turn == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in llm.generation_config.eos_token_id
