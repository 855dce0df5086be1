"""Profiles: arms and values of their own, corpora in part, selections, models that are pinned."""

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


def test_the_papers_default_arm(paper: config.Config) -> None:
    arm = paper.arm("steermoe")
    assert arm.train_splits == {"librispeech": ["train-clean-100", "train-clean-360"]}
    assert arm.dev_splits == {"librispeech": ["dev-clean", "dev-other"]}
    assert arm.training.learning_rates == {"projection": 1e-4, "vectors": 1e-2, "router": 1e-3}
    assert arm.steering is not None and arm.steering.num_experts == 8
    assert (arm.encoder.path, arm.llm.path) == ("openai/whisper-large-v3", "Qwen/Qwen2.5-7B-Instruct")
    assert (arm.encoder.dtype, arm.llm.dtype, arm.encoder.window) == ("bfloat16", "bfloat16", "full")
    assert all(section.revision and len(section.revision) == 40 for section in (arm.encoder, arm.llm))
    assert paper.corpora["librispeech"].test == ["test-clean", "test-other"]
    assert list(paper.corpora) == ["librispeech"]  # which the arms in force need; AISHELL-2 is had by few


def test_an_arm_of_a_profile_has_its_own_corpora_and_models(paper: config.Config) -> None:
    arm = paper.arm("conformer-3b-aishell2")
    assert (arm.train_splits, arm.dev_splits) == ({"aishell2": ["train"]}, {"aishell2": ["ios-dev"]})
    assert (arm.encoder.name, arm.encoder.revision, arm.bridge.kernel) == ("firered", None, 2)
    assert arm.llm.path == "Qwen/Qwen2.5-3B-Instruct" and arm.llm.revision != paper.llm.revision
    assert arm.prompts.transcribe == "请逐字复述音频内容为文字"
    hours = {name: paper.arm(f"steermoe-{name}").train_splits["librispeech"] for name in ("100h", "960h")}
    assert [len(splits) for splits in hours.values()] == [1, 3]
    assert paper.arm("linear-960h").train_splits == paper.arm("steermoe-960h").train_splits


def test_the_rehearsal_has_the_papers_arms_and_readers(params: Path, paper: config.Config) -> None:
    dry = config.preview(params, "paper-dry")
    assert dry.arms.keys() == paper.arms.keys()
    assert dry.rehearsal is not None and paper.rehearsal is None
    for name, arm in paper.arms.items():
        ours = dry.arm(name)
        assert (ours.train_splits, ours.dev_splits, ours.method) == (
            arm.train_splits, arm.dev_splits, arm.method
        )  # fmt: skip
        assert ours.model_dump(include={"steering", "lora", "bridge", "prompts"}) == arm.model_dump(
            include={"steering", "lora", "bridge", "prompts"}
        )
        assert (ours.encoder.name, ours.encoder.window) == (arm.encoder.name, arm.encoder.window)
        assert ours.training.learning_rates == arm.training.learning_rates


def test_arms_bring_their_corpora_into_force(params: Path) -> None:
    config.switch_profile(params, "paper")
    config.put_in_force(params, ["conformer-7b-aishell2", "linear"])
    assert list(config.load(params).corpora) == ["librispeech", "aishell2"]
    config.switch_profile(params, "paper", compare=["steermoe", "linear"], corpora=["mls", "librispeech"])
    assert list(config.load(params).corpora) == ["librispeech", "mls"]  # the cross-lingual table
    config.switch_profile(params, "mini", compare=["steermoe", "linear", "lora"])
    assert list(config.load(params).corpora) == ["synthetic", "digits"]


def test_an_arm_without_its_corpus_is_told(params: Path) -> None:
    before = params.read_bytes()
    with pytest.raises(config.ConfigError, match="arm steermoe-aishell2 needs aishell2, not in force"):
        config.switch_profile(
            params, "paper", ["steermoe-aishell2"], ["librispeech"], reference="steermoe-aishell2"
        )
    with pytest.raises(config.ConfigError, match=r'corpora: found \["fsdd"\]; legal: \[librispeech, '):
        config.switch_profile(params, "paper", corpora=["fsdd"])
    assert params.read_bytes() == before


def test_part_of_the_corpora(edit: Edit, problems: Problems, params: Path) -> None:
    edit({"corpora": ["synthetic"]})
    assert list(config.load(params).arm("linear").train_splits) == ["synthetic"]
    edit({"corpora": ["digits"]})
    assert "params.yaml: corpora: none in force has a split in `dev`, for arm linear" in problems()


def test_values_of_a_profile_stand_above_those_of_params(
    edit: Edit, problems: Problems, params: Path
) -> None:
    edit({"mini:overrides": {"generation.max_new_tokens": 7, "evaluation.normalizers": {"digits": "none"}}})
    loaded = config.load(params)
    assert loaded.generation.max_new_tokens == 7 and loaded.evaluation.normalizers == {"digits": "none"}
    edit({"corpora": ["synthetic"]})
    assert config.load(params).evaluation.normalizers == {}  # digits is not in force
    edit({"mini:overrides": {"generation.max_new_tokens": 0}})
    assert problems() == [
        "configs/mini.yaml: overrides.generation.max_new_tokens: found 0; legal: a whole number >= 1"
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"mini:overrides": {"generation.max_tokens": 7}},
            'configs/mini.yaml: overrides: found "generation.max_tokens"; legal: one of generation.max_new_tokens, ',
        ),
        (
            {"mini:selection.train": {"synthetic": ["dev"]}},
            'configs/mini.yaml: selection: found {"train": "synthetic: dev"}; legal: train',
        ),
        (
            {"mini:selection.dev": {"digits": ["test"], "nope": ["dev"]}},
            'configs/mini.yaml: selection: found {"dev": "digits: test"}; legal: none',
        ),
        (
            {"mini:arms": {"linear": {"method": "linear", "overrides": {"seed": 3}}}},
            'configs/mini.yaml: arms: found "linear"; legal: a name that params.yaml does not have in its arms',
        ),
        (
            {"mini:arms": {"other": {"method": "linear", "overrides": {"bridge.kernl": 3}}}},
            "configs/mini.yaml: arms.other.overrides.bridge.kernl: no such value; legal: one of bridge.downsample, ",
        ),
        (
            {"mini:llm.revision": "main"},
            'configs/mini.yaml: llm.revision: found "main"; legal: null, or a commit of the hub, 40 hexadecimal',
        ),
        (
            {"mini:llm.path": "./pretrained/llm", "mini:llm.revision": COMMIT},
            f"configs/mini.yaml: llm.revision: found \"{COMMIT}\"; legal: null, as './pretrained/llm' is a folder",
        ),
    ],
)
def test_a_mistake_in_a_profile_is_told(
    edit: Edit, problems: Problems, changes: dict[str, Any], line: str
) -> None:
    edit({"compare": ["steermoe", "linear", "lora"], **changes})
    assert [found for found in problems() if found.startswith(line)], problems()


def test_an_arm_that_selects_what_its_profile_lacks(edit: Edit, problems: Problems, params: Path) -> None:
    arm = {"method": "linear", "overrides": {"selection.train": {"synthetic": ["trian"]}}}
    edit({"mini:arms": {"other": arm}})
    assert "other" not in config.load(params).arms
    edit({"compare": ["other", "linear"]})
    assert problems() == [
        'params.yaml: compare: arm other: selection.train: found "synthetic: trian"; legal: train'
    ]


def test_the_lock_pins_what_a_profile_leaves_open(edit: Edit, params: Path) -> None:
    edit({"mini:llm.path": "owner/llm"})
    file = config.lock_file(params, "mini")
    assert config.read_lock(file) == {} and config.load(params).llm.revision is None
    lock = {"owner/llm": config.Locked(revision=COMMIT, files={"config.json": "ab"})}
    file.write_text(config.lock_text(lock))
    assert config.read_lock(file) == lock
    loaded = config.load(params)
    assert loaded.llm.revision == loaded.arm("lora").llm.revision == COMMIT
    assert loaded.encoder.revision is None
    other = COMMIT[::-1]
    edit({"mini:llm.revision": other})
    assert config.load(params).arm("lora").llm.revision == other
    file.write_text(json.dumps({"owner/llm": {"revision": "main", "files": {}}}))
    with pytest.raises(config.ConfigError, match=r"mini\.lock\.json: owner/llm\.revision: .*delete the file"):
        config.load(params)


def test_the_arms_of_the_audiovisual_profile(params: Path) -> None:
    names = ["audiovisual", "audiovisual-linear", "audio-only"]
    loaded = config.preview(params, "audiovisual", names)
    both, linear, audio = (loaded.arm(name) for name in names)
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
    sections = (loaded.video, loaded.arm("audiovisual").video)
    assert [section.encoder.revision for section in sections if section] == [COMMIT, COMMIT]
    edit(
        {
            "audiovisual:video.bridge.after": 1,
            "audiovisual:video.steering.layers": "some",
            "audiovisual:video.size": 3,
        }
    )
    file = "configs/audiovisual.yaml: video"
    assert len(found := [line for line in problems() if line.startswith(file)]) == 3
    assert found[0].startswith(f'{file}.steering.layers: found "some"; legal: all, none')
    assert found[1].startswith(f'{file}.bridge: found {{"after": 1}}; legal: null')
    assert found[2] == f"{file}.size: unknown key; legal: one of encoder, steering, bridge"
    edit({"audiovisual:video": 3})
    assert f"{file}: found 3; legal: a section with encoder, steering, bridge or null" in problems()
