"""A merged folder hears what the adapter heard, with nothing else at hand."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from steermoe import SteerMoE
from steermoe.audio.io import RATE
from steermoe.cli import main as cli
from steermoe.config.experiments import METHODS, parts_of
from steermoe.export.merge import merged_variant, write_merged
from steermoe.models import checkpoint as adapter
from steermoe.training.mlflow_pyfunc import Transcriber

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The shipped adapters with their base models, which can be taken away."""
    place = tmp_path / "project"
    shutil.copytree(ROOT / "pretrained", place / "pretrained", ignore=shutil.ignore_patterns("*.py", "made"))
    return place


def shaken(variant: Any) -> SteerMoE:
    """A model whose trained parts, LoRA's among them, all matter."""
    model = SteerMoE.from_config(variant)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.trainable_state_dict().values():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def heard(model: SteerMoE) -> torch.Tensor:
    features = torch.randn(2, model.features.channels, 130, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model.encode(features, torch.tensor([130, 130]))[0]


@pytest.mark.parametrize("name", ["steermoe", "lora"])
def test_the_same_words_with_the_base_models_gone(
    name: str, project: Path, spoken: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [each.samples for each in spoken]
    source = project / "pretrained/adapters/mini" / name
    before = SteerMoE.from_pretrained(source)
    expected, states = before.transcribe(samples), heard(before)
    sizes = write_merged(source, project / "merged")
    shutil.rmtree(project / "pretrained")
    (project / "encoder").mkdir()  # of no use, and in the way
    monkeypatch.chdir(project)
    (project / "llm").mkdir()
    after = SteerMoE.from_pretrained("merged")
    assert after.transcribe(samples) == expected and expected[0] == spoken[0].text
    assert not [module for module in after.modules() if isinstance(module, LoraLayer)]
    assert after.config.method == {"steermoe": "steering", "lora": "linear"}[name]
    if name == "steermoe":
        assert torch.equal(heard(after), states) and after.frozen_hashes() == before.frozen_hashes()
    else:
        torch.testing.assert_close(heard(after), states, rtol=1e-4, atol=1e-4)
        assert after.frozen_hashes()["encoder"] != before.frozen_hashes()["encoder"]
        assert after.frozen_hashes()["llm"] == before.frozen_hashes()["llm"]
        mlflows = Transcriber()
        settings = SimpleNamespace(
            artifacts={"adapter": "merged"}, model_config={"base_models": str(project)}
        )
        mlflows.load_context(settings)
        assert mlflows.model.frozen_hashes() == after.frozen_hashes()
    assert set(sizes) == {"adapter", "encoder", "llm"} and sizes["llm"] > 1e7
    assert all(file.stat().st_mode & 0o044 for file in (project / "merged").rglob("*.safetensors"))


def test_the_command_line_needs_nothing_else(
    project: Path, spoken: list[SimpleNamespace], capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's commands: the second in a process of its own, from an empty folder, once the project is gone."""
    empty = project.parent / "empty"
    empty.mkdir()
    soundfile.write(empty / "talk.wav", spoken[0].samples, RATE)
    page = (ROOT / "docs/export.md").read_text()
    merge, use = (shlex.split(line)[1:] for line in re.findall(r"^    (steermoe .* merged)$", page, re.M)[:2])
    with contextlib.chdir(project):
        assert cli.main(merge) == 0
        assert capsys.readouterr().out == "merged: adapter 0.3 MB, encoder 14.1 MB, llm 12.6 MB\n"
        assert cli.main(merge) == 1
        expected = "steermoe: merged exists; name another folder, or remove it\n"
        assert capsys.readouterr().err == expected
    (project / "merged").rename(empty / "merged")
    shutil.rmtree(project)
    run = subprocess.run(
        [sys.executable, "-m", "steermoe.cli.main", *use], cwd=empty, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, spoken[0].text + "\n")
    assert "158 words" in run.stderr and run.stderr.count("\n") == 1  # the notice of the mini models


@pytest.mark.parametrize(
    ("method", "left"),
    [
        ("steering+lora+llm_lora", "steering"),
        ("lora+llm_lora", "linear"),
    ],
)
def test_low_rank_adapters_are_folded_in(
    method: str, left: str, tiny_variant: Callable[..., Any], greedy: Any, tmp_path: Path
) -> None:
    before = shaken(tiny_variant(method))
    before.save_pretrained(tmp_path / "adapter")
    write_merged(tmp_path / "adapter", tmp_path / "merged")
    after = SteerMoE.from_pretrained(tmp_path / "merged")
    assert after.config.method == left and after.config.lora is after.config.llm_lora is None
    assert set(after.config.training.learning_rates) == set(after.parameter_groups())
    tolerance = 0.0 if method == left else 1e-4
    torch.testing.assert_close(heard(after), heard(before), rtol=tolerance, atol=tolerance)
    ids = torch.tensor([before.tokenizer("the red cat sings")["input_ids"]])
    with torch.no_grad():
        logits = [model.llm(input_ids=ids).logits for model in (before, after)]
    torch.testing.assert_close(*logits, rtol=tolerance, atol=tolerance)
    sounds = [np.random.default_rng(seed).normal(0, 0.1, RATE).astype(np.float32) for seed in range(3)]
    assert after.transcribe(sounds) == before.transcribe(sounds)
    again = SteerMoE.from_pretrained(tmp_path / "merged", encoder=tmp_path / "merged/encoder")
    assert again.frozen_hashes() == after.frozen_hashes()


def test_the_weights_are_those_of_merge_and_unload(
    tiny_variant: Callable[..., Any], tiny_llm_dir: Path, tmp_path: Path
) -> None:
    """peft's own road as the reference."""
    model = shaken(tiny_variant("linear+llm_lora"))
    model.save_pretrained(tmp_path / "adapter")
    section = model.config.llm_lora
    assert section is not None
    plain: Any = AutoModelForCausalLM.from_pretrained(tiny_llm_dir)
    settings = LoraConfig(r=section.rank, lora_alpha=section.alpha, target_modules=list(section.targets))
    reference = LoraModel(plain, settings, "default")
    trained = {
        name.removeprefix("llm."): p
        for name, p in model.trainable_state_dict().items()
        if name.startswith("llm.")
    }
    found = plain.load_state_dict(trained, strict=False)
    assert trained and not found.unexpected_keys
    expected = reference.merge_and_unload().state_dict()
    write_merged(tmp_path / "adapter", tmp_path / "merged")
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged/llm")
    assert merged.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.state_dict().items())
    untouched: Any = AutoModelForCausalLM.from_pretrained(tiny_llm_dir)
    changed = {name for name, t in untouched.state_dict().items() if not torch.equal(t, expected[name])}
    assert changed == {name for name in expected if any(f"{one}.weight" in name for one in section.targets)}


@pytest.mark.parametrize("method", METHODS)
def test_the_configuration_of_every_method_is_legal(method: str, tiny_variant: Callable[..., Any]) -> None:
    variant = merged_variant(tiny_variant(method))
    assert variant.method in ("steering", "linear") and (variant.method == "steering") == (
        "steering" in method
    )
    assert set(variant.training.learning_rates) == set(parts_of(variant.method))
    assert (variant.encoder.path, variant.llm.path) == ("./encoder", "./llm")


def test_a_bfloat16_model_stays_one(tiny_variant: Callable[..., Any], tmp_path: Path) -> None:
    variant = tiny_variant("steering+lora", {"encoder.dtype": "bfloat16", "llm.dtype": "bfloat16"})
    before = shaken(variant)
    before.save_pretrained(tmp_path / "adapter")
    write_merged(tmp_path / "adapter", tmp_path / "merged")
    after = SteerMoE.from_pretrained(tmp_path / "merged")
    assert {p.dtype for p in after.encoder.model.parameters()} == {torch.bfloat16}
    near = torch.nn.functional.cosine_similarity(heard(after).flatten(), heard(before).flatten(), 0)
    assert near > 0.99  # folding rounds to the type of the weights


def test_what_cannot_be_merged_is_told_before_anything_is_loaded(
    tiny_variant: Callable[..., Any],
    video_section: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = SteerMoE.from_config(tiny_variant("linear"))
    folder = tmp_path / "quantized"
    llm = model.config.llm.model_copy(update={"quantization": "nf4"})
    variant = model.config.model_copy(update={"llm": llm})
    adapter.write(folder, adapter.Adapter(variant, model.frozen_hashes(), model.trainable_state_dict()))
    with pytest.raises(ValueError, match=r"quantized: found llm\.quantization 'nf4'; only an LLM"):
        write_merged(folder, tmp_path / "out")
    model.save_pretrained(tmp_path / "adapter")
    write_merged(tmp_path / "adapter", tmp_path / "merged")
    with pytest.raises(ValueError, match="merged: is merged already"):
        write_merged(tmp_path / "merged", tmp_path / "out")
    with pytest.raises(FileExistsError, match="name another folder"):
        write_merged(tmp_path / "adapter", tmp_path / "merged")
    SteerMoE.from_config(tiny_variant("steering", {"video": video_section()})).save_pretrained(
        tmp_path / "seeing"
    )
    with pytest.raises(ValueError, match="seeing: found a video branch; only models of audio alone"):
        write_merged(tmp_path / "seeing", tmp_path / "out")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(adapter, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        write_merged(tmp_path / "adapter", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged", "quantized", "seeing"]


def test_paths_with_a_dot_are_beside_the_adapter_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here/encoder", "project/encoder", "project/one/encoder"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    one, two = tmp_path / "project/one", tmp_path / "project/two"
    assert adapter.find_frozen("./encoder", one) == str(one / "encoder")
    assert adapter.find_frozen("encoder", one) == "encoder"  # no dot: the current folder first
    assert adapter.find_frozen("./encoder", two) == "./encoder"  # nothing beside it: as any other
    monkeypatch.chdir(tmp_path)
    assert adapter.find_frozen("encoder", two) == str(tmp_path / "project/encoder")
