from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from steermoe import config
from steermoe.models.encoders import load_encoder
from steermoe.models.encoders.whisper import Whisper

FULL = 400  # feature frames of the tiny encoder's window


def section(path: Path, dtype: str = "float32", window: str = "unpadded") -> config.Encoder:
    values = {"name": "whisper", "path": str(path), "revision": None, "dtype": dtype, "window": window}
    return config.Encoder.model_validate(values | {"layers": "all"})


@pytest.fixture(params=["sdpa", "eager"])
def encoder(request: pytest.FixtureRequest, tiny_encoder_dir: Path) -> Whisper:
    encoder = Whisper(section(tiny_encoder_dir)).eval()
    encoder.model.set_attn_implementation(request.param)
    return encoder


@torch.no_grad()
def test_a_full_window_gives_bit_for_bit_what_transformers_gives(encoder: Whisper) -> None:
    features = torch.randn(2, 80, FULL)
    hidden, lengths = encoder(features, torch.tensor([FULL, FULL]))
    assert torch.equal(hidden, encoder.model(features).last_hidden_state)
    assert lengths.tolist() == [FULL // 2, FULL // 2]


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(1, 2, 3, 4, 5), (37, 400, 1, 98, 399), (8, 8, 8)])
def test_a_row_does_not_depend_on_its_batch(encoder: Whisper, lengths: tuple[int, ...]) -> None:
    rows = [torch.randn(80, length) for length in lengths]
    # What lies behind a row's end must not matter, even if it is not the collator's zeros.
    features = torch.full((len(rows), 80, max(lengths)), 3.0)
    for row, values in enumerate(rows):
        features[row, :, : values.shape[1]] = values
    together, steps = encoder(features, torch.tensor(lengths))
    assert steps.tolist() == [(length + 1) // 2 for length in lengths]
    for row, values in enumerate(rows):
        alone, _ = encoder(values[None], torch.tensor([values.shape[1]]))
        assert alone.shape[1] == steps[row]
        torch.testing.assert_close(together[row, : steps[row]], alone[0], atol=2e-5, rtol=1e-4)
    assert together.isfinite().all()


@torch.no_grad()
def test_without_the_mask_a_row_would_depend_on_its_batch(encoder: Whisper) -> None:
    features, lengths = torch.randn(2, 80, 50), torch.tensor([20, 50])
    features[0, :, 20:] = 0
    masked, _ = encoder(features, lengths)
    unmasked, _ = encoder(features, torch.tensor([50, 50]))
    assert not torch.allclose(masked[0, :10], unmasked[0, :10], atol=1e-3)


def test_limits_are_errors(tiny_encoder_dir: Path) -> None:
    encoder = load_encoder(section(tiny_encoder_dir))
    with pytest.raises(ValueError, match=r"4\.02 s of audio.*at most 4\.00 s"):
        encoder(torch.zeros(1, 80, FULL + 1), torch.tensor([FULL + 1]))
    with pytest.raises(ValueError, match="found 128 channels, the encoder takes 80"):
        encoder(torch.zeros(1, 128, 10), torch.tensor([10]))


@torch.no_grad()
@pytest.mark.filterwarnings("default")  # saving a whole Whisper warns of its generation settings
def test_the_encoder_of_a_whole_whisper_is_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sizes = WhisperConfig(
        d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=80,
        max_source_positions=20, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32,
        vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    whole = WhisperForConditionalGeneration(sizes).eval()
    whole.save_pretrained(tmp_path)
    capfd.readouterr()
    encoder = load_encoder(section(tmp_path))
    assert "UNEXPECTED" not in capfd.readouterr().err
    features = torch.randn(1, 80, 40)
    ours, _ = encoder(features, torch.tensor([40]))
    assert torch.equal(ours, whole.get_encoder()(features).last_hidden_state)


def test_bfloat16_weights(tiny_encoder_dir: Path) -> None:
    encoder = load_encoder(section(tiny_encoder_dir, "bfloat16"))
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
    features, lengths = torch.randn(2, 80, 60), torch.tensor([60, 31])
    hidden, _ = encoder(features, lengths)
    exact, _ = load_encoder(section(tiny_encoder_dir))(features, lengths)
    torch.testing.assert_close(hidden.float()[1, :16], exact[1, :16], atol=0.15, rtol=0.1)


def test_weights_that_are_not_there_are_errors(
    tiny_encoder_dir: Path, tiny_llm_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"encoder\.path: found '.*nowhere', which is neither a folder"):
        load_encoder(section(tmp_path / "nowhere"))
    sizes = WhisperConfig.from_pretrained(tiny_encoder_dir)
    sizes.encoder_layers = 2
    WhisperEncoder(sizes).save_pretrained(tmp_path)
    sizes.encoder_layers = 3
    sizes.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d+ weights.*layers\.2"):
        load_encoder(section(tmp_path))


def test_unknown_encoders_are_named(tiny_encoder_dir: Path) -> None:
    unknown = section(tiny_encoder_dir).model_copy(update={"name": "wisper"})
    with pytest.raises(ValueError, match=r"encoder\.name: found 'wisper', must be one of: .*whisper"):
        load_encoder(unknown)


@pytest.mark.parametrize("num_mels", [80, 128])
@pytest.mark.parametrize("samples", [700, 16_000, 16_040, 16_159, 48_123, 63_900])
@torch.no_grad()
def test_a_padded_window_is_transformers_own(num_mels: int, samples: int, tmp_path: Path) -> None:
    """Features too, those behind the end that still see the last samples included."""
    sizes = WhisperConfig(
        d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, init_std=0.2,
        num_mel_bins=num_mels, max_source_positions=200,
    )  # fmt: skip
    model = WhisperEncoder(sizes).eval()
    model.save_pretrained(tmp_path)
    # Loud at the end: what is behind it matters. Silent at the start: it is cut off at 80 dB.
    noise = np.random.default_rng(samples).standard_normal(samples) * np.linspace(1e-6, 0.3, samples)
    extractor = WhisperFeatureExtractor(feature_size=num_mels, chunk_length=4)
    made = extractor(noise, sampling_rate=16_000, return_tensors="pt")["input_features"]
    encoder = load_encoder(section(tmp_path, window="full"))
    features = encoder.features(noise)
    kept = min(features.shape[1], FULL)
    torch.testing.assert_close(features[:, :kept], made[0, :, :kept], atol=1e-5, rtol=0)
    found, lengths = encoder(features[None], torch.tensor([features.shape[1]]))
    assert lengths.tolist() == [-(-samples // 320)] == [found.shape[1]]
    expected = model(made).last_hidden_state[:, : found.shape[1]]
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)
    unpadded = load_encoder(section(tmp_path))
    own = unpadded.features(noise)
    other, same = unpadded(own[None], torch.tensor([own.shape[1]]))
    assert same.tolist() == lengths.tolist()
    assert torch.allclose(other, found, atol=1e-2) == (samples == 63_900)  # which leaves nothing to pad


@torch.no_grad()
def test_rows_of_padded_windows_do_not_depend_on_their_batch(tiny_encoder_dir: Path) -> None:
    encoder = load_encoder(section(tiny_encoder_dir, window="full"))
    rows = [encoder.features(torch.randn(samples) * 0.1) for samples in (800, 63_000, 20_000)]
    padded = torch.full((3, 80, max(row.shape[1] for row in rows)), 3.0)
    for number, row in enumerate(rows):
        padded[number, :, : row.shape[1]] = row
    seen: list[int] = []
    encoder.layers[2].register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    for between in (None, {1: lambda hidden, lengths: (hidden[:, ::2], (lengths + 1) // 2)}):
        together, lengths = encoder(padded, torch.tensor([row.shape[1] for row in rows]), between=between)
        assert together.shape[1] == lengths.max()
        for number, row in enumerate(rows):
            alone, own = encoder(row[None], torch.tensor([row.shape[1]]), between=between)
            assert own.tolist() == [lengths[number]]
            torch.testing.assert_close(together[number, : lengths[number]], alone[0], atol=2e-5, rtol=1e-4)
    # The layers attend to the whole window, and to the utterances alone after a shortening.
    assert seen == [200, 200, 200, 200, 99, 2, 99, 32]
