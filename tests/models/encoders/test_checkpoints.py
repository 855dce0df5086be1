"""Checkpoints as they are published: with heads and decoders, with or without a feature extractor."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    ParakeetCTCConfig,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForCTC,
    Wav2Vec2ConformerForPreTraining,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from steermoe import config
from steermoe.models.encoders import load_encoder

from .conftest import SIZES

CONFORMER: dict[str, Any] = {
    "conv_dim": [16] * 7,
    "num_conv_pos_embedding_groups": 4,
    "codevector_dim": 16,
    "vocab_size": 9,
}


def pretraining(folder: Path) -> torch.nn.Module:
    whole = Wav2Vec2ConformerForPreTraining(Wav2Vec2ConformerConfig(**SIZES, **CONFORMER))
    whole.save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return whole.wav2vec2_conformer


def conformer_ctc(folder: Path) -> torch.nn.Module:
    whole = Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**SIZES, **CONFORMER))
    whole.save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return whole.wav2vec2_conformer


def bert_ctc(folder: Path) -> torch.nn.Module:
    whole = Wav2Vec2BertForCTC(Wav2Vec2BertConfig(**SIZES, vocab_size=9))
    whole.save_pretrained(folder)
    SeamlessM4TFeatureExtractor().save_pretrained(folder)
    return whole.wav2vec2_bert


def parakeet_ctc(folder: Path) -> torch.nn.Module:
    sizes = ParakeetEncoderConfig(**SIZES, subsampling_conv_channels=8, subsampling_factor=4)
    whole = ParakeetForCTC(ParakeetCTCConfig(vocab_size=9, pad_token_id=8, encoder_config=sizes.to_dict()))
    whole.save_pretrained(folder)
    ParakeetFeatureExtractor().save_pretrained(folder)
    return whole.encoder


def whole_whisper(folder: Path) -> torch.nn.Module:
    sizes = WhisperConfig(
        d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=80,
        max_source_positions=20, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32,
        vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    whole: Any = WhisperForConditionalGeneration(sizes)
    whole.save_pretrained(folder)
    return whole.get_encoder()


WHOLE: dict[str, Callable[[Path], torch.nn.Module]] = {
    "wav2vec2-conformer pretraining": pretraining,
    "wav2vec2-conformer ctc": conformer_ctc,
    "w2v-bert ctc": bert_ctc,
    "parakeet ctc": parakeet_ctc,
    "whisper with decoder": whole_whisper,
}


def section(name: str, folder: Path) -> config.Encoder:
    return config.Encoder(
        name=name.split()[0],
        path=str(folder),
        revision=None,
        dtype="float32",
        window="unpadded",
        layers="all",
    )


@torch.no_grad()
@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.filterwarnings("default")  # saving a whole model warns of its generation settings
def test_the_encoder_of_a_whole_model_is_found(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    inside = WHOLE[name](tmp_path).eval()
    capfd.readouterr()
    encoder = load_encoder(section(name, tmp_path))
    assert "UNEXPECTED" not in capfd.readouterr().err
    found = encoder.model.state_dict()
    for key, tensor in inside.state_dict().items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("name", ["wav2vec2-conformer ctc", "w2v-bert ctc", "parakeet ctc"])
@pytest.mark.filterwarnings("default")
def test_a_feature_extractor_must_be_there_and_fit(name: str, tmp_path: Path) -> None:
    WHOLE[name](tmp_path)
    path = tmp_path / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"feature_extractor_type": "WhisperFeatureExtractor"}))
    with pytest.raises(ValueError, match=r"encoder\.path: .* has a WhisperFeatureExtractor; this encoder"):
        load_encoder(section(name, tmp_path))
    path.write_text(json.dumps(settings | {"sampling_rate": 8000}))
    with pytest.raises(ValueError, match="found sampling_rate 8000, audio here is at 16000 Hz"):
        load_encoder(section(name, tmp_path))
    if not name.startswith("wav2vec2"):
        path.write_text(json.dumps(settings | {"feature_size": 40, "num_mel_bins": 40}))
        with pytest.raises(ValueError, match=r"its feature extractor makes .*, its weights take \d+"):
            load_encoder(section(name, tmp_path))
    path.unlink()
    with pytest.raises(ValueError, match=r"encoder\.path: .* lacks preprocessor_config\.json"):
        load_encoder(section(name, tmp_path))


@pytest.mark.parametrize("name", ["wav2vec2-conformer", "w2v-bert"])
@pytest.mark.filterwarnings("default")
def test_an_adapter_behind_the_encoder_is_refused(name: str, tmp_path: Path) -> None:
    if name == "w2v-bert":
        Wav2Vec2BertForCTC(Wav2Vec2BertConfig(**SIZES, vocab_size=9, add_adapter=True)).save_pretrained(
            tmp_path
        )
    else:
        sizes = Wav2Vec2ConformerConfig(**SIZES, **CONFORMER, add_adapter=True)
        Wav2Vec2ConformerForCTC(sizes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has add_adapter, layers after the encoder"):
        load_encoder(section(name, tmp_path))


def test_missing_weights_and_unknown_encoders_are_errors(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"encoder\.path: found '.*nowhere', which does not exist"):
        load_encoder(section("whisper", tmp_path / "nowhere"))
    sizes = WhisperConfig.from_pretrained(tiny_encoder_dir)
    sizes.encoder_layers = 2
    WhisperEncoder(sizes).save_pretrained(tmp_path)
    sizes.encoder_layers = 3
    sizes.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d+ weights.*layers\.2"):
        load_encoder(section("whisper", tmp_path))
    unknown = section("whisper", tiny_encoder_dir).model_copy(update={"name": "wisper"})
    with pytest.raises(ValueError, match=r"encoder\.name: found 'wisper', must be one of: .*whisper"):
        load_encoder(unknown)
