"""Exported graphs say what the model says; cards say what was measured."""

import contextlib
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile
import torch

from steermoe import SteerMoE
from steermoe.audio.io import RATE
from steermoe.audio.synthesis import Synthesizer
from steermoe.cli import main as cli
from steermoe.corpora import grammar, synthetic
from steermoe.evaluation.predictions import read_result
from steermoe.export.onnx_export import DESCRIPTION, export_onnx
from steermoe.export.onnx_model import OnnxModel
from steermoe.export.publication import write_publication
from steermoe.model_card import adapter_card

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's, torch's and onnxscript's own


def tones(seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(0, 0.1, round(RATE * seconds)).astype(np.float32) for seconds in (0.4, 1.1, 2.0)]


@pytest.fixture(scope="module")
def synthetic_clean() -> list[np.ndarray]:
    """Sentences of the mini world, said by voices of split `clean`."""
    engine, rng = Synthesizer(), np.random.default_rng(5)
    texts = grammar.sentences(rng, "test", None)
    cast = synthetic.CASTS["clean"]
    return [synthetic.record(engine, rng, next(texts).text, cast, "clean")[0] for _ in range(24)]


PAGE = (ROOT / "docs/export.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after the commands of the page that export the shipped mini adapter."""
    place = tmp_path_factory.mktemp("export")
    (place / "pretrained").symlink_to(ROOT / "pretrained")
    commands = re.findall(r"^    steermoe (export onnx .*)$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    with contextlib.chdir(place):
        assert [cli.main(shlex.split(command)) for command in commands] == [0, 0]
    return place


@pytest.fixture(scope="module")
def exported(place: Path) -> Path:
    return place / "exported"


def test_the_example_of_the_page_runs(
    place: Path, synthetic_clean: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    [example] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(place)
    soundfile.write("speech.wav", synthetic_clean[0], RATE)
    exec(compile(example, "docs/export.md", "exec"), {})
    assert capsys.readouterr().out.strip() == OnnxModel("exported").transcribe("speech.wav")


def test_words_of_the_mini_model_are_the_same(
    exported: Path, synthetic_clean: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    model, graphs = SteerMoE.from_pretrained("pretrained/adapters/mini/steermoe"), OnnxModel(exported)
    expected = model.transcribe(synthetic_clean)
    assert graphs.transcribe(synthetic_clean) == expected
    assert len(set(expected)) > 1
    assert graphs.transcribe(synthetic_clean[0]) == expected[0]


def test_audio_tokens_are_the_same_at_other_sizes_than_the_traced(exported: Path) -> None:
    graphs = OnnxModel(exported)
    model = SteerMoE.from_pretrained(
        ROOT / "pretrained/adapters/mini/steermoe",
        encoder=ROOT / "pretrained/encoder",
        llm=ROOT / "pretrained/llm",
    )
    for lengths in ([40], [523, 17], [800, 799, 401, 30, 8]):
        features = torch.randn(len(lengths), model.features.channels, max(lengths))
        lengths_B = torch.tensor(lengths)
        with torch.no_grad():
            expected, tokens = model.encode(features, lengths_B)
        heard = graphs._audio(features=features, feature_lengths=lengths_B)
        assert torch.equal(heard["audio_lengths"], tokens)
        for row, count in enumerate(tokens.tolist()):
            torch.testing.assert_close(
                heard["audio"][row, :count], expected[row, :count], rtol=1e-3, atol=1e-3
            )


@pytest.mark.parametrize("method", ["lora", "steering"])
def test_adapters_and_aligners_are_in_the_graph(
    method: str, tiny_variant: Callable[..., Any], tmp_path: Path
) -> None:
    changes = (
        {"projector.projection": "feature_space", "projector.width": 16, "projector.heads": 2}
        if method == "steering"
        else {}
    )
    model = SteerMoE.from_config(tiny_variant(method, changes))
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.05 * torch.randn_like(parameter))
    export_onnx(model, tmp_path / "made")
    assert OnnxModel(tmp_path / "made").transcribe(tones()) == model.transcribe(tones())


def test_int8_is_smaller_and_still_hears(
    place: Path, synthetic_clean: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    model = SteerMoE.from_pretrained("pretrained/adapters/mini/steermoe")
    full, small = (
        sum(file.stat().st_size for file in (place / name / "llm").iterdir())
        for name in ("exported", "exported-int8")
    )
    assert small < 0.5 * full
    same = [
        a == b
        for a, b in zip(
            OnnxModel(place / "exported-int8").transcribe(synthetic_clean),
            model.transcribe(synthetic_clean),
            strict=True,
        )
    ]
    assert np.mean(same) > 0.7


def test_what_cannot_be_exported_is_said_before_anything_is_written(
    tiny_variant: Callable[..., Any], tmp_path: Path
) -> None:
    model = SteerMoE.from_config(tiny_variant("linear", {"llm.dtype": "bfloat16"}))
    with pytest.raises(ValueError, match=r"found llm\.dtype 'bfloat16'"):
        export_onnx(model, tmp_path / "made")
    ctc = {"steps": 1, "coef": 1.0, "soft_tokens": True, "spelling": False, "num_sampled": None}
    model = SteerMoE.from_config(tiny_variant("linear", {"training.ctc": ctc}))
    with pytest.raises(ValueError, match=r"found training\.ctc"):
        export_onnx(model, tmp_path / "made")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="name another folder"):
        export_onnx(SteerMoE.from_config(tiny_variant("linear")), tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_no_export_is_refused_by_name(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path}: not an export of `steermoe export onnx`"):
        OnnxModel(str(tmp_path))
    description = json.loads((exported / DESCRIPTION).read_text()) | {"format": 99}
    (tmp_path / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(ValueError, match="found format 99"):
        OnnxModel(tmp_path)


def test_a_card_has_figures_with_their_protocol(tiny_variant: Callable[..., Any], tmp_path: Path) -> None:
    model = SteerMoE.from_config(tiny_variant("steering"))
    figure = {"value": 0.125, "low": 0.1, "high": 0.15, "n": 40}
    protocol = {
        "normalizer": "folded", "decoding": "greedy", "interval": "95 %", "bootstrap_samples": 100,
        "bootstrap_unit": "auto", "seed": 3,
    }  # fmt: skip
    folder = tmp_path / "synthetic"
    folder.mkdir()
    summary = {
        "protocol": protocol,
        "own": {"clean": {"transcribe": {"n": 40, "seconds": 9.0, "wer": figure}}},
    }
    (folder / "metrics.json").write_text(json.dumps(summary))
    pl.DataFrame({"source_id": ["a"]}).write_parquet(folder / "predictions.parquet")
    card = adapter_card(model, "someone/adapter", {"synthetic": read_result(folder)})
    assert "| clean | transcribe | wer | 12.5 | [10.0, 15.0] | 40 |" in card.text
    assert "normaliser `folded`; decoding: greedy" in card.text and "seed 3" in card.text
    assert "library_name: steermoe" in str(card)
    with pytest.raises(ValueError, match="found no evaluation"):
        write_publication(str(tmp_path), "someone/adapter", tmp_path / "out", folder)
