"""Models of other formats become the same models in Hugging Face's: tensors, transcripts, answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, WhisperForConditionalGeneration

from steermoe import config, hub
from steermoe.evaluation.decoders import WhisperDecoder
from steermoe.models.encoders import load_encoder
from steermoe.models.llm import load_llm, load_tokenizer
from steermoe.weights import convert, ctranslate2
from tests.evaluation.whisper import save_multilingual

from .formats import save_ctranslate2, save_gguf, write_variables


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory, tiny_llm_dir: Path) -> Path:
    """A tiny multilingual Whisper in Hugging Face format, whose values float16 has."""
    folder = save_multilingual(tmp_path_factory.mktemp("whisper") / "hf", tiny_llm_dir)
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    model.half().float().save_pretrained(folder)
    return folder


def encoder(path: Path) -> config.Encoder:
    return config.Encoder(
        name="whisper", path=str(path), revision=None, dtype="float32", window="unpadded", layers="all"
    )


def llm(path: Path) -> config.Llm:
    return config.Llm(path=str(path), revision=None, dtype="float32", quantization="none", layers="all")


def faster(whisper: Path, folder: Path, dtype: str = "float16") -> Path:
    """The Whisper as faster-whisper has it: without timestamps in tokenizer.json, with what is suppressed."""
    save_ctranslate2(WhisperForConditionalGeneration.from_pretrained(whisper), folder, dtype)
    described = json.loads((whisper / "tokenizer.json").read_text())
    kept = [token for token in described["added_tokens"] if "." not in token["content"]]
    assert len(described["added_tokens"]) - len(kept) == 201
    described["added_tokens"] = kept
    (folder / "tokenizer.json").write_text(json.dumps(described))
    (folder / "config.json").write_text(
        json.dumps({"suppress_ids": [3], "suppress_ids_begin": [5], "lang_ids": [7]})
    )
    (folder / "LICENSE").write_text("free")
    return folder


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_whisper_of_ctranslate2_is_the_same_whisper(
    whisper: Path, tmp_path: Path, dtype: str, greedy: Callable[..., Any]
) -> None:
    given = encoder(faster(whisper, tmp_path / "faster", dtype))
    folder = Path(hub.located(given, "encoder").path)
    assert folder.parent == tmp_path / "cache"
    own, made = (
        WhisperForConditionalGeneration.from_pretrained(path, dtype="float32") for path in (whisper, folder)
    )
    assert {n: tuple(t.shape) for n, t in own.state_dict().items()} == {
        n: tuple(t.shape) for n, t in made.state_dict().items()
    }
    assert all(torch.equal(own.state_dict()[name], tensor) for name, tensor in made.state_dict().items())
    assert made.proj_out.weight is made.model.decoder.embed_tokens.weight
    settings: Any = made.generation_config
    theirs: Any = own.generation_config
    assert (settings.suppress_tokens, settings.begin_suppress_tokens) == ([3], [5])
    assert settings.lang_to_id == theirs.lang_to_id
    assert settings.no_timestamps_token_id == theirs.no_timestamps_token_id
    assert (folder / "LICENSE").read_text() == "free"
    noise = np.random.default_rng(1).standard_normal(24_000).astype(np.float32) * 0.1
    features, hidden = {}, {}
    for path in (str(whisper), given.path):
        loaded = load_encoder(encoder(Path(path)))
        features[path] = loaded.features(noise)
        hidden[path], _ = loaded(features[path][None], torch.tensor([features[path].shape[1]]))
    assert torch.equal(*hidden.values())
    # Its own decoder: nothing is suppressed in the original, so compare without.
    made.generation_config.suppress_tokens = made.generation_config.begin_suppress_tokens = None
    made.generation_config.save_pretrained(folder)
    texts = [
        WhisperDecoder(encoder(path), greedy(12), 0, torch.device("cpu"))([noise], ["en"])
        for path in (whisper, folder)
    ]
    assert texts[0] == texts[1] != [""]


def test_it_is_converted_once_and_anew_when_it_changes(whisper: Path, tmp_path: Path) -> None:
    given = encoder(faster(whisper, tmp_path / "faster"))
    first = Path(hub.located(given, "encoder").path)
    weights = first / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert Path(hub.located(given, "encoder").path) == first and weights.stat().st_mtime_ns == before
    assert hub.identity(given, "encoder")["revision"] is None
    model = WhisperForConditionalGeneration.from_pretrained(whisper)
    with torch.no_grad():
        model.model.encoder.layer_norm.bias += 1
    save_ctranslate2(model, tmp_path / "faster")
    second = Path(hub.located(given, "encoder").path)
    assert second != first
    name = "model.encoder.layer_norm.bias"
    assert torch.equal(load_file(second / weights.name)[name], load_file(weights)[name].float() + 1)


def test_a_damaged_whisper_leaves_nothing(whisper: Path, tmp_path: Path) -> None:
    folder = faster(whisper, tmp_path / "faster")
    file, whole = folder / ctranslate2.FILE, (folder / ctranslate2.FILE).read_bytes()
    variables = {
        name: array.copy() for name, array in ctranslate2.read(file).items()
    }  # not of the mapped file

    def refused(words: str) -> None:
        with pytest.raises(ValueError, match=rf"encoder\.path: .*{words}"):
            hub.located(encoder(folder), "encoder")
        assert not [p for p in (tmp_path / "cache").glob("*") if not p.name.startswith(".")]

    file.write_bytes(whole[:-100])
    refused("model.bin: damaged")
    file.write_bytes(whole + b"more")
    refused("4 bytes follow")
    file.write_bytes(b"\x09" + whole[1:])
    refused("version 9 of 'WhisperSpec'; expected")
    name = "encoder/layer_0/ffn/linear_0/weight"
    write_variables(dict(variables) | {name: variables[name].astype(np.int8)}, {}, file)
    refused("has the type int8; only float16 and float32")
    write_variables({n: array for n, array in variables.items() if n != name}, {}, file)
    refused("fc1")
    write_variables({n: array for n, array in variables.items() if "decoder" not in n}, {}, file)
    refused("model.bin: ")
    file.write_bytes(whole)
    (folder / "tokenizer.json").unlink()
    refused("tokenizer.json: no such file")


def test_a_gguf_file_is_the_same_llm(tiny_llama_dir: Path, tmp_path: Path) -> None:
    given = llm(save_gguf(tiny_llama_dir, tmp_path / "tiny.gguf"))
    loaded, tokenizer = load_llm(given)
    own = LlamaForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    assert loaded.state_dict().keys() == own.state_dict().keys()
    assert all(torch.equal(own.state_dict()[name], tensor) for name, tensor in loaded.state_dict().items())
    ids = torch.arange(12)[None]
    assert torch.equal(loaded(input_ids=ids).logits, own(input_ids=ids).logits)
    assert isinstance(tokenizer, PreTrainedTokenizerFast) and tokenizer.chat_template
    text = "please transcribe the cat, it's 12 o'clock"
    assert tokenizer(text).input_ids == load_tokenizer(str(tiny_llama_dir))(text).input_ids
    folder = Path(hub.located(given, "llm").path)
    assert folder.parent == tmp_path / "cache"
    half, _ = load_llm(given.model_copy(update={"dtype": "bfloat16"}))
    assert half.dtype == torch.bfloat16


def test_a_damaged_gguf_file_leaves_nothing(tiny_llama_dir: Path, tmp_path: Path) -> None:
    file = save_gguf(tiny_llama_dir, tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"llm\.path: .*tiny\.gguf: damaged"):
        load_llm(llm(file))
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"llm\.path: .*tiny\.gguf: damaged"):
        load_llm(llm(file))
    with pytest.raises(ValueError, match=r"one of several files"):
        convert.converted(file.rename(tmp_path / "tiny-00001-of-00003.gguf"))
    assert not [p for p in (tmp_path / "cache").glob("*") if not p.name.startswith(".")]


def test_formats_are_for_their_section(whisper: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    folder, file = faster(whisper, tmp_path / "faster"), save_gguf(tiny_llama_dir, tmp_path / "tiny.gguf")
    with pytest.raises(ValueError, match=r"llm\.path: found '.*faster', ctranslate2; legal: .*a GGUF file"):
        hub.located(llm(folder), "llm")
    with pytest.raises(ValueError, match=r"encoder\.path: found '.*tiny.gguf', gguf; legal: .*CTranslate2"):
        hub.located(encoder(file), "encoder")
    with pytest.raises(ValueError, match=r"encoder\.path: found '.*LICENSE', a file; legal"):
        hub.located(encoder(folder / "LICENSE"), "encoder")
