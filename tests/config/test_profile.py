"""Profiles: variants and values of their own, corpora in part, selections, models that are pinned."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steermoe import config

Edit = Callable[[dict[str, Any]], None]
Problems = Callable[[], list[str]]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def paper(params: Path) -> config.Config:
    return config.preview(params, "paper")


def test_the_papers_default_variant(paper: config.Config) -> None:
    variant = paper.variant("steermoe")
    assert variant.train_splits == {"librispeech": ["train-clean-100", "train-clean-360"]}
    assert variant.dev_splits == {"librispeech": ["dev-clean", "dev-other"]}
    assert variant.training.learning_rates == {"projection": 1e-4, "vectors": 1e-2, "router": 1e-3}
    assert variant.steering is not None and variant.steering.num_experts == 8
    assert (variant.encoder.path, variant.llm.path) == ("openai/whisper-large-v3", "Qwen/Qwen2.5-7B-Instruct")
    assert (variant.encoder.dtype, variant.llm.dtype, variant.encoder.window) == (
        "bfloat16",
        "bfloat16",
        "full",
    )
    assert all(section.revision and len(section.revision) == 40 for section in (variant.encoder, variant.llm))
    assert paper.corpora["librispeech"].test == ["test-clean", "test-other"]
    assert list(paper.corpora) == ["librispeech"]  # which the selected variants need; AISHELL-2 is had by few


def test_a_variant_of_a_profile_has_its_own_corpora_and_models(paper: config.Config) -> None:
    variant = paper.variant("conformer-3b-aishell2")
    assert (variant.train_splits, variant.dev_splits) == ({"aishell2": ["train"]}, {"aishell2": ["ios-dev"]})
    assert (variant.encoder.name, variant.encoder.revision, variant.projector.downsample_factor) == (
        "firered",
        None,
        2,
    )
    assert variant.llm.path == "Qwen/Qwen2.5-3B-Instruct" and variant.llm.revision != paper.llm.revision
    assert variant.prompts.transcribe == "请逐字复述音频内容为文字"
    hours = {name: paper.variant(f"steermoe-{name}").train_splits["librispeech"] for name in ("100h", "960h")}
    assert [len(splits) for splits in hours.values()] == [1, 3]
    assert paper.variant("linear-960h").train_splits == paper.variant("steermoe-960h").train_splits


def test_the_dry_run_has_the_papers_variants_and_readers(params: Path, paper: config.Config) -> None:
    dry = config.preview(params, "paper-dry")
    assert dry.variants.keys() == paper.variants.keys()
    for name, variant in paper.variants.items():
        ours = dry.variant(name)
        assert (ours.train_splits, ours.dev_splits, ours.method) == (
            variant.train_splits, variant.dev_splits, variant.method
        )  # fmt: skip
        assert ours.model_dump(include={"steering", "lora", "projector", "prompts"}) == variant.model_dump(
            include={"steering", "lora", "projector", "prompts"}
        )
        assert (ours.encoder.name, ours.encoder.window) == (variant.encoder.name, variant.encoder.window)
        assert ours.training.learning_rates == variant.training.learning_rates


def test_variants_bring_their_corpora_into_force(params: Path) -> None:
    config.switch_profile(params, "paper")
    config.select(params, ["conformer-7b-aishell2", "linear"])
    assert list(config.load(params).corpora) == ["librispeech", "aishell2"]
    config.switch_profile(params, "paper", compare=["steermoe", "linear"], corpora=["mls", "librispeech"])
    assert list(config.load(params).corpora) == ["librispeech", "mls"]  # the cross-lingual table
    config.switch_profile(params, "mini", compare=["steermoe", "linear", "lora"])
    assert list(config.load(params).corpora) == ["synthetic", "digits"]


def test_a_variant_without_its_corpus_is_told(params: Path) -> None:
    before = params.read_bytes()
    with pytest.raises(config.ConfigError, match="variant steermoe-aishell2 needs aishell2"):
        config.switch_profile(
            params, "paper", ["steermoe-aishell2"], ["librispeech"], reference="steermoe-aishell2"
        )
    with pytest.raises(config.ConfigError, match=r'corpora: found \["fsdd"\]; allowed: \[librispeech, '):
        config.switch_profile(params, "paper", corpora=["fsdd"])
    assert params.read_bytes() == before


def test_part_of_the_corpora(edit: Edit, problems: Problems, params: Path) -> None:
    edit({"corpora": ["synthetic"]})
    assert list(config.load(params).variant("linear").train_splits) == ["synthetic"]
    edit({"corpora": ["digits"]})
    assert all("split in `dev`" in line for line in problems())


def test_values_of_a_profile_stand_above_those_of_params(
    edit: Edit, problems: Problems, params: Path
) -> None:
    edit({"mini:overrides": {"generation.max_new_tokens": 7, "evaluation.normalizers": {"digits": "none"}}})
    loaded = config.load(params)
    assert loaded.generation.max_new_tokens == 7 and loaded.evaluation.normalizers == {"digits": "none"}
    edit({"corpora": ["synthetic"]})
    assert config.load(params).evaluation.normalizers == {}  # digits is not selected
    edit({"mini:overrides": {"generation.max_new_tokens": 0}})
    assert problems() == [
        "configs/mini.yaml: overrides.generation.max_new_tokens: found 0; allowed: a whole number >= 1"
    ]


def test_a_profile_overrides_what_all_variants_share(edit: Edit, params: Path) -> None:
    edit({"mini:overrides": {"projector.downsample_factor": 2, "prompts.transcribe": "write :"}})
    loaded = config.load(params)
    assert loaded.projector.downsample_factor == 2
    for name in ("steermoe", "linear"):
        variant = loaded.variant(name)
        assert (variant.projector.downsample_factor, variant.prompts.transcribe) == (2, "write :")
    assert loaded.variant("slam-asr").projector.downsample_factor == 5  # its own override


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"mini:overrides": {"generation.max_tokens": 7}},
            'configs/mini.yaml: overrides: found "generation.max_tokens"; allowed: one of steering.num_experts, ',
        ),
        (
            {"mini:overrides": {"projector.projection": "mlp"}},
            'configs/mini.yaml: overrides.projector.width: found null; allowed: a number with projection mlp',
        ),
        (
            {"mini:selection.train": {"synthetic": ["dev"]}},
            'configs/mini.yaml: selection.train: found "synthetic: dev"; allowed: train',
        ),
        (
            {"mini:selection.dev": {"digits": ["test"], "nope": ["dev"]}},
            'configs/mini.yaml: selection.dev: found "digits: test"; allowed: null',
        ),
        (
            {"mini:variants": {"linear": {"method": "linear", "overrides": {"seed": 3}}}},
            'configs/mini.yaml: variants: found "linear"; allowed: a name that',
        ),
        (
            {
                "mini:variants": {
                    "other": {"method": "linear", "overrides": {"projector.downsample_fctor": 3}}
                }
            },
            "configs/mini.yaml: variants.other.overrides.projector.downsample_fctor: no such value; ",
        ),
        (
            {"mini:llm.revision": "main"},
            'configs/mini.yaml: llm.revision: found "main"; allowed: a commit of the hub, 40 hexadecimal',
        ),
        (
            {"mini:llm.path": "./pretrained/llm", "mini:llm.revision": COMMIT},
            f"configs/mini.yaml: llm.revision: found \"{COMMIT}\"; allowed: null, as './pretrained/llm' is a folder",
        ),
    ],
)
def test_a_mistake_in_a_profile_is_told(
    edit: Edit, problems: Problems, changes: dict[str, Any], line: str
) -> None:
    edit({"compare": ["steermoe", "linear", "lora"], **changes})
    assert [found for found in problems() if found.startswith(line)], problems()


def test_a_variant_that_selects_what_its_profile_lacks(edit: Edit, problems: Problems, params: Path) -> None:
    variant = {"method": "linear", "overrides": {"selection.train": {"synthetic": ["trian"]}}}
    edit({"mini:variants": {"other": variant}})
    assert "other" not in config.load(params).variants
    edit({"compare": ["other", "linear"]})
    assert problems() == [
        'params.yaml: compare: variant other: selection.train: found "synthetic: trian"; allowed: train'
    ]


def test_the_lock_pins_what_a_profile_leaves_open(edit: Edit, params: Path) -> None:
    edit({"mini:llm.path": "owner/llm"})
    file = config.lock_file(params, "mini")
    assert config.read_lock(file) == {} and config.load(params).llm.revision is None
    lock = {"owner/llm": config.Locked(revision=COMMIT, files={"config.json": "ab"})}
    file.write_text(config.lock_text(lock))
    assert config.read_lock(file) == lock
    loaded = config.load(params)
    assert loaded.llm.revision == loaded.variant("lora").llm.revision == COMMIT
    assert loaded.encoder.revision is None
    other = COMMIT[::-1]
    edit({"mini:llm.revision": other})
    assert config.load(params).variant("lora").llm.revision == other
    file.write_text(json.dumps({"owner/llm": {"revision": "main", "files": {}}}))
    with pytest.raises(config.ConfigError, match=r"mini\.lock\.json: owner/llm\.revision: .*delete the file"):
        config.load(params)


def test_the_variants_of_the_audiovisual_profile(params: Path) -> None:
    names = ["audiovisual", "audiovisual-linear", "audio-only"]
    loaded = config.preview(params, "audiovisual", names)
    both, linear, audio = (loaded.variant(name) for name in names)
    assert (
        both.video is not None
        and both.video.steering is not None
        and both.train_splits == {"shapes": ["train"]}
    )
    assert linear.video == both.video.model_copy(update={"steering": None})
    assert audio.video is None and audio.prompts == both.prompts


def test_the_video_encoder_is_pinned_and_mistakes_in_it_are_told(
    edit: Edit, problems: Problems, params: Path
) -> None:
    config.switch_profile(params, "audiovisual", ["audiovisual"], reference="audiovisual")
    edit({"audiovisual:video.encoder.path": "owner/vit"})
    lock = {"owner/vit": config.Locked(revision=COMMIT, files={"config.json": "ab"})}
    config.lock_file(params, "audiovisual").write_text(config.lock_text(lock))
    loaded = config.load(params)
    sections = (loaded.video, loaded.variant("audiovisual").video)
    assert [section.encoder.revision for section in sections if section] == [COMMIT, COMMIT]
    edit(
        {
            "audiovisual:video.projector.downsample_after_layer": 1,
            "audiovisual:video.steering.layers": "some",
            "audiovisual:video.size": 3,
        }
    )
    file = "configs/audiovisual.yaml: video"
    found = [line for line in problems() if line.startswith(file)]
    assert found[0].startswith(f'{file}.steering.layers: found "some"; allowed: all, none')
    assert found[1:] == [f"{file}.size: unknown key; allowed: one of encoder, steering, projector"]
    edit({"audiovisual:video.steering.layers": "all", "audiovisual:video.size": ...})
    (line,) = [line for line in problems() if line.startswith(file)]
    assert "downsample_after_layer" in line and "allowed: null" in line
    edit({"audiovisual:video": 3})
    assert f"{file}: found 3; allowed: a section with encoder, steering, projector or null" in problems()
