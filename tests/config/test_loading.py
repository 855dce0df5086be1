"""The shipped files load, all problems of both files are reported at once, and the profile can be switched."""

import difflib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from steermoe import config

ROOT = Path(__file__).parents[2]
Edit = Callable[[dict[str, Any]], None]
Problems = Callable[[], list[str]]


@pytest.mark.parametrize("profile", [file.stem for file in sorted((ROOT / "configs").glob("*.yaml"))])
def test_shipped_configuration_loads(params: Path, profile: str) -> None:
    config.switch_profile(params, profile)
    loaded = config.load(params)
    tree, sizes = YAML().load(params), YAML().load(ROOT / "configs" / f"{profile}.yaml")
    assert (loaded.profile, list(loaded.corpora)) == (profile, tree["corpora"])
    assert loaded.compare == tree["compare"]
    assert loaded.variants.keys() == tree["variants"].keys() | sizes["variants"].keys()
    rates = sizes["training"]["learning_rates"]["steering"]
    assert loaded.training.learning_rates.steering.model_dump() == rates
    assert isinstance(rates["vectors"], float)  # YAML 1.1 reads 1e-2 as text


def test_every_problem_of_both_files_is_reported_at_once(edit: Edit, problems: Problems) -> None:
    edit(
        {
            "steering": {},
            "seed": "x",
            "compare": ["liner"],
            "variants.baseline": {"method": "lora", "overrides": {"lora.rnk": 0}},
            "mini:training.max_steps": 0,
            "mini:llm": {"path": "", "dtype": 3},
        }
    )
    reported = [line.split(":")[1].strip() for line in problems()]
    steering = [f"steering.{name}" for name in config.Steering.model_fields]
    mine = ["seed", "compare", "reference", "variants.baseline", "variants.baseline.overrides.lora.rnk"]
    theirs = ["training.max_steps", "llm.path", "llm.revision", "llm.dtype", "llm.quantization", "llm.layers"]
    assert sorted(reported) == sorted(steering + mine + theirs)


def test_unknown_profile_hides_no_other_problem(edit: Edit, problems: Problems) -> None:
    edit({"profile": "mnii", "seed": -1})
    assert [line.split(":")[1].strip() for line in problems()] == ["seed", "profile"]


@pytest.mark.parametrize("corpora", [["digits", "synthetic"], ["synthetic", "fleurs"]])
def test_corpora_that_are_not_the_profiles(edit: Edit, problems: Problems, corpora: list[str]) -> None:
    edit({"corpora": corpora})
    assert len(found := problems()) == 1
    assert found[0].endswith("run `make profile PROFILE=mini`")


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("a: 1\na: 2\n", 'line 2: not YAML: found duplicate key "a"'),
        ("a: [1\n", "not YAML"),
        ("- a\n", "allowed: keys with values"),
        ("a: {1: 2}\n", "key: found 1; allowed: text"),
        ("a: {2026-01-01: 2}\n", 'key: found "2026-01-01"; allowed: text'),
    ],
)
def test_text_that_is_no_configuration(params: Path, problems: Problems, text: str, rest: str) -> None:
    params.write_text(text)
    assert len(found := problems()) == 1
    assert rest in found[0]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"params\.yaml: no such file"):
        config.load(tmp_path / "params.yaml")


def test_switch_profile_changes_its_lines_and_keeps_the_rest(edit: Edit, params: Path) -> None:
    shutil.copy(ROOT / "configs" / "mini.yaml", params.parent / "configs" / "words.yaml")
    edit({"words:corpora.digits": ...})
    before = params.read_text().splitlines()
    config.switch_profile(params, "words")
    loaded = config.load(params)
    assert (loaded.profile, list(loaded.corpora)) == ("words", ["synthetic"])
    changed = [line for line in difflib.ndiff(before, params.read_text().splitlines()) if line[0] in "+-"]
    assert [line.partition("#")[0].strip() for line in changed] == [
        *("- profile: mini", "+ profile: words", "- - digits")
    ]
    assert "#" in changed[1]
    config.switch_profile(params, "mini")
    assert params.read_text().splitlines() == before
    assert sorted(file.name for file in params.parent.iterdir()) == ["configs", "params.yaml"]


def test_switch_to_a_wrong_profile_leaves_params_alone(edit: Edit, params: Path) -> None:
    shutil.copy(params.parent / "configs" / "mini.yaml", params.parent / "configs" / "other.yaml")
    edit({"other:training.max_steps": 0})
    before = params.read_bytes()
    with pytest.raises(config.ConfigError, match=r"other\.yaml: training\.max_steps"):
        config.switch_profile(params, "other")
    with pytest.raises(config.ConfigError, match="did you mean other"):
        config.switch_profile(params, "othr")
    assert params.read_bytes() == before


@pytest.mark.parametrize(
    ("file", "setting", "line"),
    [
        ("params.yaml", "steering.num_experts=16", "num_experts: 16"),
        *((path.relative_to(ROOT).as_posix(), "training.max_steps=9876543", "max_steps: 9876543")
          for path in sorted((ROOT / "configs").glob("*.yaml"))),
    ],
)  # fmt: skip
def test_a_setting_of_an_experiment_changes_one_line(
    params: Path, file: str, setting: str, line: str
) -> None:
    """`dvc exp run -S` writes files in a form of its own: that is the form of ours."""
    path = params.parent / file
    before = path.read_text().splitlines()
    apply_overrides(str(path), [setting])
    after = path.read_text().splitlines()
    (changed,) = [new for old, new in zip(before, after, strict=True) if old != new]
    assert changed.partition("#")[0].strip() == line
