"""What holds for every encoder: it is its library's model, keeps utterances apart, is steered, adapted and strict."""

from collections.abc import Callable
from typing import Any

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
from steermoe.models.encoders.encoder import layer_hidden
from steermoe.models.encoders.firered import FireRedConformer
from steermoe.models.lora import add_lora
from steermoe.models.pretrained import digest, frozen_weights
from steermoe.models.steering import Steering

from .conftest import CHECKPOINTS, SAMPLES, batch

Section = Callable[..., config.Encoder]
Speech = Callable[[int, int], np.ndarray]
STEERING = {"num_experts": 3, "scale_init": 0.5, "vector_std": 1.0}


TARGETS = {
    "whisper": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "wav2vec2-conformer": ["linear_q", "linear_k", "linear_v", "linear_out", "intermediate_dense"],
    "w2v-bert": ["linear_q", "linear_k", "linear_v", "linear_out", "output_dense"],
    "parakeet": ["q_proj", "k_proj", "v_proj", "o_proj", "linear1", "linear2"],
    "firered": ["w_qs", "w_ks", "w_vs", "fc", "expand", "project"],
}
SHORTEST = {"whisper": 1, "wav2vec2-conformer": 400, "w2v-bert": 560, "parakeet": 320, "firered": 400}
every = pytest.mark.parametrize("checkpoint", CHECKPOINTS)


def halved(hidden: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every second frame."""
    return hidden[:, ::2], (lengths + 1) // 2


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


def test_every_encoder_is_here() -> None:
    assert {name.split()[0] for name in CHECKPOINTS} == set(ENCODERS) == set(TARGETS) == set(LIBRARIES)


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
@pytest.mark.parametrize(
    ("checkpoint", "attention"),
    [
        (name, kind)
        for name in CHECKPOINTS
        for kind in ("sdpa", "eager")
        if (name, kind) != ("firered", "eager")
    ]
    + [("whisper", "full window")],
)
@pytest.mark.parametrize("between", [None, {0: halved, 1: halved}], ids=["whole", "shortened"])
def test_a_row_does_not_depend_on_its_batch(
    checkpoint: str, attention: str, between: Any, section: Section, speech: Speech
) -> None:
    encoder = load_encoder(section(checkpoint, window="full" if attention == "full window" else "unpadded"))
    if checkpoint != "firered" and attention != "full window":  # FireRed has one implementation only
        model: Any = encoder.model
        model.set_attn_implementation(attention)
    waveforms = [speech(samples, seed) for seed, samples in enumerate(SAMPLES)]
    together, lengths = encoder(*batch(encoder, waveforms), between=between)
    assert together.isfinite().all() and len(set(lengths.tolist())) > 1
    for row, waveform in enumerate(waveforms):
        features, frames = batch(encoder, [waveform])
        alone, own = encoder(features, frames, between=between)
        assert own.tolist() == [lengths[row]] == [alone.shape[1]]
        # Padded kernels sum in another order.
        torch.testing.assert_close(together[row, : lengths[row]], alone[0], atol=5e-5, rtol=1e-3)


@every
@torch.no_grad()
def test_layers_after_a_shortening_are_short(checkpoint: str, section: Section, speech: Speech) -> None:
    encoder = load_encoder(section(checkpoint))
    features, lengths = batch(encoder, [speech(16_000, 1), speech(9_000, 2)])
    plain, frames = encoder(features, lengths)
    same, _ = encoder(features, lengths, between={1: lambda hidden, lengths: (hidden, lengths)})
    assert torch.equal(same, plain)
    seen: list[int] = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append(layer_hidden(output).shape[1]))
    short, half = encoder(features, lengths, between={0: halved})
    steps = int(frames.max())
    assert seen == [steps, (steps + 1) // 2, (steps + 1) // 2]
    assert half.tolist() == [(count + 1) // 2 for count in frames.tolist()]
    assert short.shape[1] == (steps + 1) // 2
    with pytest.raises(ValueError, match=r"between: found layers \[3\], the encoder has 0 to 2"):
        encoder(features, lengths, between={3: halved})


@every
def test_it_is_steered(
    checkpoint: str, section: Section, speech: Speech, make_steering: Callable[..., config.Steering]
) -> None:
    encoder = load_encoder(section(checkpoint))
    features, lengths = batch(encoder, [speech(16_000, 1), speech(9_000, 2)])
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    with torch.inference_mode():  # must leave nothing that breaks training
        plain, frames = encoder(features, lengths)
    assert plain.shape == (2, int(frames.max()), encoder.width)
    torch.manual_seed(0)
    steering = Steering(make_steering(**STEERING), encoder.layers, encoder.width)
    with steering.disabled():
        assert torch.equal(encoder(features, lengths)[0], plain)
    steered, _ = encoder(features, lengths)
    assert not torch.allclose(steered, plain, atol=1e-2)
    weights = torch.randn(steered.shape, generator=torch.Generator().manual_seed(1))
    (steered * weights)[1, : frames[1]].sum().backward()
    assert steering.vectors.grad is not None
    assert steering.vectors.grad.abs().sum(1).min() > 0  # layer 0 too, through all the others
    assert all(p.grad is None for p in encoder.parameters())


@every
@torch.no_grad()
def test_what_attention_returns_is_added_to_the_residual(
    checkpoint: str, section: Section, speech: Speech
) -> None:
    encoder = load_encoder(section(checkpoint))
    features, lengths = batch(encoder, [speech(16_000, 1)])
    hidden, lengths = encoder.stem(features, lengths)
    context = encoder.context(hidden, lengths)
    layer, added = encoder.layers[1], torch.linspace(-1, 1, encoder.width)
    read: list[torch.Tensor] = []
    for child in layer.modules():
        if child is not layer:
            child.register_forward_pre_hook(lambda module, args: read.append(args[0]) if args else None)
    layer(hidden, *context)
    before = list(read)
    read.clear()

    def steer(module: torch.nn.Module, args: Any, output: Any) -> Any:
        shifted = layer_hidden(output) + added
        return (shifted, *output[1:]) if isinstance(output, tuple) else shifted

    encoder.attention(1).register_forward_hook(steer)
    layer(hidden, *context)
    shifts = [new - old for new, old in zip(read, before, strict=True) if new.shape == hidden.shape]
    assert any(torch.allclose(shift, added.expand_as(shift), atol=1e-5) for shift in shifts)


@every
@torch.no_grad()
def test_bfloat16(checkpoint: str, section: Section, speech: Speech) -> None:
    exact, rounded = load_encoder(section(checkpoint)), load_encoder(section(checkpoint, "bfloat16"))
    features, lengths = batch(exact, [speech(16_000, 1), speech(9_000, 2)])
    assert torch.equal(batch(rounded, [speech(16_000, 1)])[0], batch(exact, [speech(16_000, 1)])[0])
    found, frames = rounded(features, lengths)
    assert found.dtype == torch.bfloat16
    expected, _ = exact(features, lengths)
    for row, count in enumerate(frames.tolist()):
        error = (found[row, :count].float() - expected[row, :count]).square().mean().sqrt()
        assert error < 0.1 * expected[row, :count].std()


@every
@torch.no_grad()
def test_adapters_go_into_the_layers_and_nowhere_else(
    checkpoint: str, section: Section, speech: Speech
) -> None:
    targets = TARGETS[checkpoint.split()[0]]
    encoder = load_encoder(section(checkpoint))
    features, lengths = batch(encoder, [speech(16_000, 1), speech(9_000, 2)])
    plain, _ = encoder(features, lengths)
    settings = config.Lora(rank=2, alpha=4, dropout=0.0, targets=targets)
    parameters = add_lora(settings, encoder.model, encoder.layers, "lora")
    assert torch.equal(encoder(features, lengths)[0], plain)
    inside = {id(p) for p in encoder.layers.parameters()}
    assert parameters and all(id(p) in inside for p in parameters)
    names = {name for name, _ in encoder.layers[0].named_modules() if name.endswith(".lora_A")}
    assert {name.split(".")[-2] for name in names} == set(targets)
    for parameter in parameters:
        parameter.normal_(std=0.3)
    assert not torch.allclose(encoder(features, lengths)[0], plain, atol=1e-2)


@every
def test_unfit_audio_is_refused(checkpoint: str, section: Section, speech: Speech) -> None:
    encoder = load_encoder(section(checkpoint))
    if not checkpoint.startswith("whisper"):
        with pytest.raises(
            ValueError, match=r"encoder\.window: found 'full'; legal for this encoder: unpadded"
        ):
            load_encoder(section(checkpoint, window="full"))
    shortest = SHORTEST[checkpoint.split()[0]]
    hidden, lengths = encoder(*batch(encoder, [speech(shortest, 1)]))
    assert lengths.tolist() == [1] and hidden.isfinite().all()
    if shortest > 1:
        with pytest.raises(ValueError, match=rf"waveform of shape .*N >= {shortest}"):
            encoder.features(speech(shortest - 1, 1))
    with pytest.raises(ValueError, match="not finite"):
        encoder.features(np.full(9_000, np.nan, np.float32))
    channels = encoder.features.channels
    with pytest.raises(ValueError, match=f"found {channels + 1} channels, the encoder takes {channels}"):
        encoder(torch.zeros(1, channels + 1, 399), torch.tensor([399]))
    with pytest.raises(ValueError, match="utterance of 0 feature frames, too short for a single frame"):
        encoder(torch.zeros(2, channels, 399), torch.tensor([399, 0]))
    if encoder.max_frames is not None:
        frames = next(
            n for n in range(10_000) if encoder.output_lengths(torch.tensor(n)) > encoder.max_frames
        )
        with pytest.raises(ValueError, match=r"found 4\.0\d s of audio, the encoder takes at most 4\.00 s"):
            encoder(torch.zeros(1, channels, frames), torch.tensor([frames]))


@every
@torch.no_grad()
def test_its_first_layers_are_those_of_the_whole(checkpoint: str, section: Section, speech: Speech) -> None:
    whole = load_encoder(section(checkpoint))
    features, lengths = batch(whole, [speech(16_000, 1), speech(9_000, 2)])
    seen: list[torch.Tensor] = []
    for layer in whole.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append(layer_hidden(output)))
    everything, frames = whole(features, lengths)
    hashes = {digest(frozen_weights(whole.model))}
    for depth in (1, 2, 3):
        encoder = load_encoder(section(checkpoint, layers=depth))
        found, own = encoder(features, lengths)
        assert len(encoder.layers) == depth and torch.equal(own, frames)
        assert torch.equal(found, whole.finish(seen[depth - 1]))
        assert torch.equal(found, everything) is (depth == 3)
        hashes.add(digest(frozen_weights(encoder.model)))
    assert len(hashes) == 3  # of all layers, named or counted, it is the same
    with pytest.raises(ValueError, match=r"encoder\.layers: found 4, the model has 3; legal: all, or 1 to 3"):
        load_encoder(section(checkpoint, layers=4))
