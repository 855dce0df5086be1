import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from steermoe.audio import io as waveform
from steermoe.config import Encoder, Evaluation, Generation
from steermoe.corpora.multilingual import language_of
from steermoe.evaluation.decoders import CtcDecoder, WhisperDecoder, decodable, own_decoder
from steermoe.evaluation.evaluator import measure
from steermoe.models.encoders import load_encoder
from tests.evaluation.whisper import save_multilingual, sized

CPU = torch.device("cpu")


def section(path: Path) -> Encoder:
    return Encoder(
        name="whisper", path=str(path), revision=None, dtype="float32", window="unpadded", layers="all"
    )


@pytest.fixture
def encoder_dir(tiny_encoder_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny encoder's folder, free to be changed."""
    for file in tiny_encoder_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_ctc_path_is_collapsed(tiny_encoder_dir: Path, generation: Generation) -> None:
    decoder = CtcDecoder(section(tiny_encoder_dir), generation, 0, CPU)
    units = decoder.units
    assert decoder.text(torch.tensor([0, 3, 3, 0, 3, 1, 1, 2, 0, 0])) == " ".join(
        [units[2], units[2], units[0], units[1]]
    )
    assert decoder.text(torch.tensor([0, 0])) == ""
    cut = section(tiny_encoder_dir).model_copy(update={"layers": 1})  # a head needs the whole encoder
    assert len(load_encoder(cut).layers) == 1
    assert len(CtcDecoder(cut, generation, 0, CPU).encoder.layers) == 3


def test_ctc_text_is_that_of_the_loudest_class_of_every_frame(
    encoder_dir: Path, settings: Evaluation, generation: Generation, utterances: pl.DataFrame
) -> None:
    """Against an independent way from frames to words, an utterance at a time."""
    head = load_file(encoder_dir / "ctc_head.safetensors")
    head["bias"] += torch.linspace(-1, 1, len(head["bias"]))
    save_file(head, encoder_dir / "ctc_head.safetensors")
    system = own_decoder(section(encoder_dir), generation, 0)
    assert system is not None and "CTC" in system.decoding
    decoder = CtcDecoder(section(encoder_dir), generation, 0, CPU)
    encoder = load_encoder(section(encoder_dir))
    expected = []
    for audio in utterances["audio"]:
        features = decoder.features(waveform.load(audio))
        with torch.no_grad():
            hidden, _ = encoder(features[None], torch.tensor([features.shape[1]]))
        words, before = [], 0
        for frame in hidden[0]:
            best = int((head["weight"] @ frame + head["bias"]).argmax())
            if best not in (0, before):
                words.append(decoder.units[best - 1])
            before = best
        expected.append(" ".join(words))
    found = measure(system, utterances, settings, seed=0).frame["hypothesis"].to_list()
    assert found == expected and len(set(expected)) > 3


def test_a_head_that_does_not_fit_its_units_is_an_error(encoder_dir: Path, generation: Generation) -> None:
    (encoder_dir / "ctc_units.json").write_text(json.dumps(["one", "two"]))
    with pytest.raises(ValueError, match=r"found weight of shape \(\d+, 32\), expected \(3, 32\)"):
        own_decoder(section(encoder_dir), generation, 0)
    (encoder_dir / "ctc_head.safetensors").unlink()
    assert own_decoder(section(encoder_dir), generation, 0) is None


@pytest.fixture(scope="module")
def whisper_dir(tmp_path_factory: pytest.TempPathFactory, tiny_llm_dir: Path) -> Path:
    """A whole Whisper with random weights, whose window is 4 s."""
    from transformers import (
        GenerationConfig,
        PreTrainedTokenizerFast,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    folder = tmp_path_factory.mktemp("whisper")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_llm_dir)
    tokenizer.save_pretrained(folder)
    end = tokenizer.eos_token_id
    torch.manual_seed(4)
    model = WhisperForConditionalGeneration(sized(len(tokenizer), end, end))
    tokens = dict.fromkeys(("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id"), end)
    model.generation_config = GenerationConfig(**tokens, is_multilingual=False)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80, chunk_length=4).save_pretrained(folder)
    return folder


def test_a_whole_whisper_decodes_as_the_section_says(
    whisper_dir: Path, settings: Evaluation, greedy: Callable[..., Generation], utterances: pl.DataFrame
) -> None:
    texts = []
    for wanted, words in (
        (greedy(300), "greedy, at most 60 new tokens"),
        (greedy(8, strategy="beam", num_beams=3), "beam search, 3 beams, at most 8 new tokens"),
        (greedy(8, strategy="sample", temperature=2.0), "sampled at temperature 2, seed 7, at most 8"),
        (greedy(8, no_repeat_ngram_size=1), "greedy, at most 8 new tokens, no 1-gram twice"),
    ):
        system = own_decoder(section(whisper_dir), wanted, 7)
        assert system is not None and words in system.decoding
        torch.manual_seed(len(texts))
        found = measure(system, utterances[:4], settings, seed=0).frame["hypothesis"].to_list()
        assert found == measure(system, utterances[:4], settings, seed=0).frame["hypothesis"].to_list()
        texts.append(found)
    assert texts[2] != texts[0]


@pytest.fixture(scope="module")
def multilingual_dir(tmp_path_factory: pytest.TempPathFactory, tiny_llm_dir: Path) -> Path:
    return save_multilingual(tmp_path_factory.mktemp("multilingual"), tiny_llm_dir)


def test_whisper_is_told_language_and_task(
    multilingual_dir: Path, settings: Evaluation, generation: Generation, utterances: pl.DataFrame
) -> None:
    """Rows of several languages, and of none, in one batch: each as if it were alone, step by step."""
    languages = ["en", "de-AT", "und", "cmn", "en", "de"]
    decoder = WhisperDecoder(section(multilingual_dir), generation, 0, CPU)
    assert "with the language of the row" in decoder.decoding
    of = decoder.tokenizer.convert_tokens_to_ids
    # Random weights would write timestamps, behind which generate looks at the audio anew.
    times = list(range(of("<|0.00|>"), of("<|4.00|>") + 1))
    decoder.model.generation_config.suppress_tokens = times
    waveforms = [waveform.load(audio) for audio in utterances["audio"][:6]]
    with torch.no_grad():
        found = decoder(waveforms, languages)
    for text, samples, tag in zip(found, waveforms, languages, strict=True):
        features = decoder.extractor(samples, sampling_rate=16000, return_tensors="pt")["input_features"]

        def following(tokens: list[int], features: torch.Tensor = features) -> torch.Tensor:
            with torch.no_grad():
                output = decoder.model(input_features=features, decoder_input_ids=torch.tensor([tokens]))
            logits = output.logits[0, -1]
            logits[times] = -torch.inf
            return logits

        tokens = [of("<|startoftranscript|>")]
        code = {"en": "en", "de-AT": "de", "cmn": "zh", "de": "de"}.get(tag)
        if code is None:
            logits = following(tokens)
            code = max(("en", "de", "zh"), key=lambda code, logits=logits: float(logits[of(f"<|{code}|>")]))
        tokens += [of(f"<|{code}|>"), of("<|transcribe|>"), of("<|notimestamps|>")]
        said: list[int] = []
        while len(said) < generation.max_new_tokens and said[-1:] != [decoder.tokenizer.eos_token_id]:
            said.append(int(following([*tokens, *said]).argmax()))
        assert text == decoder.tokenizer.decode(said, skip_special_tokens=True).strip()
    assert len(set(found)) > 1


def test_languages_of_fleurs_that_whisper_calls_otherwise(
    multilingual_dir: Path, generation: Generation
) -> None:
    decoder = WhisperDecoder(section(multilingual_dir), generation, 0, CPU)
    decoder.known = {f"<|{code}|>": 0 for code in TO_LANGUAGE_CODE.values()}
    tags = ("nb_no", "jv_id", "fil_ph", "cmn_hans_cn", "cy_gb")
    found = [decoder.language(language_of(f"{tag}-test")) for tag in tags]
    assert found == ["no", "jw", "tl", "zh", "cy"]


def test_rows_that_a_decoder_knows_the_language_of(
    multilingual_dir: Path, tiny_encoder_dir: Path, generation: Generation, utterances: pl.DataFrame
) -> None:
    spoken = utterances.with_columns(pl.Series("language", ["en", "ast", "und", "de-AT", "ckb", "ast"] * 3))
    system = own_decoder(section(multilingual_dir), generation, 0)
    assert system is not None
    told, known, unknown = decodable(system, spoken)
    assert known["language"].to_list() == ["en", "und", "de-AT"] * 3
    assert unknown == "9 utterances in languages that it does not know (ast: 6, ckb: 3)"
    assert told.decoding == f"{system.decoding}; not over {unknown}"
    assert [*told.respond([known])] == [*system.respond([known])]
    nothing = spoken.filter(language="ckb")
    assert decodable(system, nothing)[1].is_empty()
    with pytest.raises(ValueError, match="language is 'ckb'; this Whisper knows: de, en, zh"):
        list(system.respond([nothing]))
    for decoder, rows in (
        (system, spoken.filter(language="en")),
        (own_decoder(section(tiny_encoder_dir), generation, 0), spoken),
    ):
        assert decoder is not None
        assert decodable(decoder, rows)[0] is decoder and decodable(decoder, rows)[1].equals(rows)


def test_audio_beyond_whispers_window_is_decoded_window_by_window(
    multilingual_dir: Path, generation: Generation
) -> None:
    decoder = WhisperDecoder(section(multilingual_dir), generation, 0, CPU)
    noise = np.random.default_rng(3).standard_normal(9 * waveform.RATE).astype(np.float32) * 0.1
    short = noise[: 3 * waveform.RATE]
    found = decoder([noise, short], ["en", "en"])
    assert found == [decoder([samples], ["en"])[0] for samples in (noise, short)]
    # The last window is heard too: another end gives another text.
    louder = np.concatenate([noise[: 6 * waveform.RATE], 5 * noise[: 3 * waveform.RATE]])
    assert decoder([louder], ["en"])[0] != found[0]


def save_ctc(kind: str, folder: Path) -> None:
    """A whole CTC model with random weights."""
    from transformers import AutoConfig, AutoModelForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLU"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    torch.manual_seed(2)
    sizes = AutoConfig.for_model(
        kind, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        conv_dim=(32,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
        vocab_size=len(letters), pad_token_id=0, initializer_range=1.0, feat_extract_norm="layer",
    )  # fmt: skip
    AutoModelForCTC.from_config(sizes).save_pretrained(folder)


def test_a_whole_ctc_model_decodes_greedily(
    tmp_path: Path, generation: Generation, utterances: pl.DataFrame
) -> None:
    from transformers import AutoModelForCTC, AutoProcessor

    save_ctc("wav2vec2", tmp_path)
    system = own_decoder(section(tmp_path), generation, 0)
    assert system is not None and "CTC head over 16 units" in system.decoding
    found = [text for _, text in system.respond([utterances])]
    model, processor = AutoModelForCTC.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    for text, audio in zip(found, utterances["audio"], strict=True):
        inputs = processor(waveform.load(audio), sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            ids = model(**inputs).logits.argmax(-1)
        expected = processor.batch_decode(ids)[0]
        for special in ("<s>", "</s>", "<unk>"):
            expected = expected.replace(special, "")
        assert text == expected.strip()
    assert len(set(found)) > 3
