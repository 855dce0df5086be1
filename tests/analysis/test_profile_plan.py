"""Estimates of a profile: from what it says itself, in agreement with the estimate of a single run."""

from pathlib import Path

import pytest

from steermoe import config
from steermoe.analysis import audit, hours, plan
from steermoe.analysis.plan import GB, GPUS
from steermoe.analysis.presets import encoder_shape, llm_shape
from steermoe.analysis.profile_plan import ProfilePlan, assumptions, plan_profile
from steermoe.corpora.librispeech import ARCHIVES

PARAMS = Path(__file__).parents[2] / "params.yaml"


def planned(compare: list[str], corpora: list[str] | None = None, **changes) -> ProfilePlan:
    settings = config.preview(PARAMS, "paper", compare, corpora)
    given = {"gpu": GPUS["h200"], "gpus": 1, "mode": "plain", "batch_seconds": None, "free_disk": 1e15}
    return plan_profile(settings, **given | changes)


def test_the_main_arm_is_ten_epochs_of_460_hours() -> None:
    [arm] = planned(["steermoe"]).arms
    assert arm.corpus.hours == pytest.approx(464.2) and arm.corpus.epochs == pytest.approx(10, rel=0.01)
    assert arm.corpus.clips == pytest.approx(28_539 + 104_014)
    assert arm.models == ("whisper-large-v3", "qwen2.5-7b-instruct") and arm.refusals == []
    # As steermoe plan --hours says of the same run, every clip padded.
    settings = config.preview(PARAMS, "paper")
    whole = plan.plan(
        encoder_shape("whisper-large-v3"),
        llm_shape("qwen2.5-7b-instruct"),
        audit.Sections.of(settings.arm("steermoe")),
        arm.corpus,
        plan.Setup(GPUS["h200"], 1, 51.0, "bfloat16", "bfloat16"),
    )
    assert arm.case == whole.cases[0].name == "padded to 30 s"
    assert arm.device_hours == pytest.approx(whole.cases[0].hours)
    assert arm.memory > whole.memory["plain"][0]  # clips of 30 s have more activations than those of 12.6


def test_more_devices_share_the_same_epochs() -> None:
    one, four = (planned(["steermoe"], gpus=count).arms[0] for count in (1, 4))
    assert four.corpus.epochs == one.corpus.epochs == 10
    assert four.device_hours[0] == pytest.approx(one.device_hours[0])


def test_the_plan_of_steps_counts_whole_windows() -> None:
    settings = config.preview(PARAMS, "paper", ["steermoe"])
    arm = settings.arm("steermoe")
    training = arm.training.model_copy(update={"steps": 3000, "epochs": None})
    settings.arms["steermoe"] = arm.model_copy(update={"training": training})
    [found] = plan_profile(settings, GPUS["h200"], 1, "plain", None, 1e15).arms
    assert found.corpus.epochs == pytest.approx(3000 * 4 / found.corpus.clips)  # 120 s are 4 windows


def test_disk_is_that_of_the_corpora_in_force() -> None:
    found = planned(["steermoe", "linear"], ["librispeech", "mls"])
    librispeech = sum(size for size, _ in ARCHIVES.values())
    assert found.disk["archives"] == pytest.approx(librispeech + 59 * GB)
    assert found.disk["frozen weights"] == pytest.approx(2 * (636_968_960 + 7_615_616_512), rel=1e-3)
    assert found.unknown == []
    settings = config.preview(PARAMS, "paper", corpora=["librispeech", "fleurs"])
    more = plan_profile(settings, GPUS["h200"], 1, "plain", None, 1e15)
    assert more.unknown == ["fleurs"]
    assert any(
        "not counted" in line and "fleurs" in line for line in assumptions(settings, GPUS["h200"], ["fleurs"])
    )


def test_every_arm_of_the_paper_has_an_estimate() -> None:
    """A corpus without published hours, or a model without a shape, would raise."""
    names = ["conformer-3b-aishell2", "linear-clothoaqa", "steermoe-unpadded"]
    found = {arm.name: arm for arm in planned(names).arms}
    assert found["conformer-3b-aishell2"].models == ("fireredasr-aed-l", "qwen2.5-3b-instruct")
    assert found["conformer-3b-aishell2"].corpus.epochs == pytest.approx(2, rel=0.01)
    assert found["linear-clothoaqa"].corpus.epochs == pytest.approx(20, rel=0.02)
    assert found["steermoe-unpadded"].case == "not padded"
    settings = config.preview(PARAMS, "paper")
    for arm in settings.arms.values():
        if arm.train_splits.keys() <= {"librispeech", "aishell2", "clothoaqa"}:
            assert hours.heard(arm.train_splits).hours > 40


def test_what_cannot_fit_is_refused() -> None:
    found = planned(["steermoe", "conformer-7b"], gpu=GPUS["rtx4090"])
    assert [bool(arm.refusals) for arm in found.arms] == [True, False]
    assert found.refusals[0].startswith("steermoe: memory: ") and "exceed the 24.0 GB" in found.refusals[0]
    [line] = planned(["steermoe"], free_disk=50 * GB).refusals
    assert line.startswith("disk: ") and "exceed the 50.0 GB that are free" in line


def test_a_corpus_without_published_hours_is_told() -> None:
    with pytest.raises(
        ValueError, match=r"corpora\.synthetic: no hours of 'train' are published; give --hours"
    ):
        plan_profile(config.load(PARAMS), GPUS["h200"], 1, "plain", None, 1e15)
