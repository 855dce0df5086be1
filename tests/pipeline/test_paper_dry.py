"""The dry run of the paper: models of the real classes, archives that the readers read, and one run to the end."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from transformers import WhisperForConditionalGeneration
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from steermoe import config, corpora
from steermoe.audio import io as waveform
from steermoe.config import Encoder, Llm
from steermoe.evaluation.decoders import own_decoder
from steermoe.models.encoders import load_encoder
from steermoe.models.encoders.firered import FireRedConformer
from steermoe.models.llm import load_llm
from tests.fixtures import paper_dry
from tests.fixtures.paper_dry import LAYOUTS, OTHERS, TRAINED
from tests.pipeline.conftest import ROOT, executed, run, stages

VARIANT, CORPUS = "conformer-7b-aishell2", "aishell2"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m tests.fixtures.paper_dry` makes."""
    out = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr("sys.argv", ["paper_dry", "--out", str(out)])
        paper_dry.main()
    return out


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_reader_reads_every_split(name: str, made: Path, tmp_path: Path) -> None:
    loaded = config.preview(ROOT / "params.yaml", "paper-dry", corpora=list(LAYOUTS)).corpora[name]
    settings: Any = loaded.model_copy(update={"mirror": str(made / name)})
    corpora.fetch(name, settings, tmp_path / "raw")
    reader, counts, targets = corpora.reader(name), dict.fromkeys(settings.used, 0), set()
    for part in reader.parts(settings, tmp_path / "raw"):
        for row in reader.rows(settings, tmp_path / "raw", part):
            counts[row["split"]] += 1
            targets.add(row["target"])
            samples = waveform.load(row["audio"])
            assert 0.5 < len(samples) / waveform.RATE < 15 and abs(samples).max() > 0.05
    assert counts == {split: TRAINED if split in settings.train else OTHERS for split in settings.used}
    assert len(targets) > 1


def test_models_are_of_the_real_classes(made: Path, greedy) -> None:
    def encoder(name: str, window: str) -> Encoder:
        values = {"path": str(made / "models" / name), "revision": None, "dtype": "bfloat16", "layers": "all"}
        kind = {"whisper": "whisper", "conformer": "firered"}[name]
        return Encoder.model_validate(values | {"name": kind, "window": window})

    noise = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    whole = WhisperForConditionalGeneration.from_pretrained(made / "models" / "whisper")
    assert (whole.config.num_mel_bins, whole.config.max_source_positions) == (128, 1500)  # as large-v3
    whisper = load_encoder(encoder("whisper", "full"))
    features = whisper.features(noise)
    with torch.no_grad():
        hidden, lengths = whisper.stem(features[None], torch.tensor([features.shape[1]]))
    assert hidden.shape[:2] == (1, 1500) and lengths.tolist() == [1500]
    assert own_decoder(encoder("whisper", "full"), greedy(4), 0) is not None
    conformer = load_encoder(encoder("conformer", "unpadded"))
    assert isinstance(conformer.model, FireRedConformer) and abs(float(conformer.features(noise).mean())) < 3
    section = Llm(
        path=str(made / "models" / "qwen"), revision=None, dtype="bfloat16", quantization="none", layers="all"
    )
    llm, tokenizer = load_llm(section)
    assert isinstance(llm, Qwen2ForCausalLM)
    text = "请逐字复述音频内容为文字 vergaß"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in llm.generation_config.eos_token_id


@pytest.mark.slow
def test_the_dry_run_goes_from_the_first_stage_to_the_last(project: Path, made: Path) -> None:
    shutil.copy(ROOT / "params.yaml", project)
    shutil.copytree(made, project / "data/paper-dry/fixtures")
    arguments = ("--compare", VARIANT, "--corpora", CORPUS)
    run(project, "python", "-m", "pipeline", "profile", "paper-dry", *arguments)
    file = project / "configs/paper-dry.yaml"
    yaml = YAML()
    profile = yaml.load(file)
    profile["variants"][VARIANT]["overrides"]["training.epochs"] = 1
    yaml.dump(profile, file)
    assert executed(run(project, "dvc", "repro")) == stages("paper-dry", [VARIANT], [CORPUS])
    metrics = json.loads((project / "reports/paper-dry/metrics.json").read_text())
    for system in (VARIANT, "baseline/text-only"):
        assert metrics[system][CORPUS]["ios-test"].keys() >= {"cer"}
    trained = json.loads((project / f"models/paper-dry/{VARIANT}/config.json").read_text())
    variant = trained.get("variant", trained)
    assert variant["train_splits"] == {"aishell2": ["train"]} and variant["encoder"]["name"] == "firered"
