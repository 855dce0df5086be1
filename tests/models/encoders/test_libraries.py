"""Every row of ENCODERS against its library: its own features, its own model, on one utterance."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import (
    ParakeetEncoder,
    ParakeetFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertModel,
    Wav2Vec2ConformerModel,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from steermoe import config
from steermoe.models.encoders import ENCODERS, load_encoder
from steermoe.models.encoders.firered import FireRedConformer

from .conftest import CHECKPOINTS, SAMPLES, batch

Section = Callable[..., config.Encoder]
Speech = Callable[[int, int], np.ndarray]


def whisper(path: str, samples: np.ndarray) -> torch.Tensor:
    made = WhisperFeatureExtractor.from_pretrained(path)(samples, sampling_rate=16_000, return_tensors="pt")
    return WhisperEncoder.from_pretrained(path)(made["input_features"]).last_hidden_state


def wav2vec2_conformer(path: str, samples: np.ndarray) -> torch.Tensor:
    made = Wav2Vec2FeatureExtractor.from_pretrained(path)(samples, sampling_rate=16_000, return_tensors="pt")
    return Wav2Vec2ConformerModel.from_pretrained(path)(made["input_values"]).last_hidden_state


def w2v_bert(path: str, samples: np.ndarray) -> torch.Tensor:
    extractor = SeamlessM4TFeatureExtractor.from_pretrained(path)
    made = extractor(samples, sampling_rate=16_000, return_tensors="pt", pad_to_multiple_of=None)
    return Wav2Vec2BertModel.from_pretrained(path)(made["input_features"]).last_hidden_state


def parakeet(path: str, samples: np.ndarray) -> torch.Tensor:
    made = ParakeetFeatureExtractor.from_pretrained(path)(samples, sampling_rate=16_000, return_tensors="pt")
    unpadded = made["input_features"][:, : int(made["attention_mask"].sum())]
    return ParakeetEncoder.from_pretrained(path)(unpadded).last_hidden_state


def firered(path: str, samples: np.ndarray) -> torch.Tensor:
    """Its own model's forward: no library has one; test_firered.py compares that with other things."""
    features = load_encoder(
        config.Encoder(
            name="firered", path=path, revision=None, dtype="float32", window="unpadded", layers="all"
        )
    ).features(samples)
    model = FireRedConformer.from_pretrained(path)
    return model(features.T[None], torch.tensor([features.shape[1]]))


LIBRARIES = {
    "whisper": whisper,
    "wav2vec2-conformer": wav2vec2_conformer,
    "w2v-bert": w2v_bert,
    "parakeet": parakeet,
    "firered": firered,
}


def test_every_encoder_has_a_library() -> None:
    assert set(LIBRARIES) == set(ENCODERS)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@torch.no_grad()
def test_it_is_the_librarys_model(checkpoint: str, section: Section, speech: Speech) -> None:
    window = "full" if checkpoint.startswith("whisper") else "unpadded"
    encoder = load_encoder(section(checkpoint, window=window))
    for number, samples in enumerate(SAMPLES):
        waveform = speech(samples, number)
        expected = LIBRARIES[checkpoint.split()[0]](section(checkpoint).path, waveform)
        found, lengths = encoder(*batch(encoder, [waveform]))
        if window == "full":
            # The logarithm of silence is scaled in another order: the last bit of the padding may differ.
            seconds = samples / 16_000
            assert lengths.tolist() == [-(-samples // 320)] == [found.shape[1]]
            assert abs(found.shape[1] / encoder.frames_per_second - seconds) <= 1 / 50
            torch.testing.assert_close(found, expected[:, : found.shape[1]], atol=1e-5, rtol=1e-5)
        elif checkpoint.startswith("firered"):  # there a mask that masks nothing goes into the attention
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_first_layers_give_transformers_hidden_states(depth: int, section: Section, speech: Speech) -> None:
    encoder = load_encoder(section("whisper", window="full", layers=depth))
    model = WhisperEncoder.from_pretrained(section("whisper").path)
    features = 0.1 * torch.randn(1, 80, 400, generator=torch.Generator().manual_seed(0))
    states = model(features, output_hidden_states=True).hidden_states
    hidden, attended = states[0], torch.tensor([states[0].shape[1]])
    for layer in encoder.layers:
        hidden = layer(hidden, *encoder.context(hidden, attended))
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    # Of the last layer they are normed already.
    expected = states[depth] if depth == 3 else model.layer_norm(states[depth])
    assert torch.equal(encoder.finish(hidden), expected)
