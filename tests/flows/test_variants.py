"""The variants that flows take, of this repository's own configuration."""

import os
import shutil
import subprocess

import pytest

from flows.checkout import Snapshot
from flows.variants import Profile
from tests.flows.conftest import ROOT


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Profile mini with the repository's files."""
    root = tmp_path_factory.mktemp("variants")
    for package in ("pipeline", "steermoe"):
        (root / package).symlink_to(ROOT / package)
    (root / ".gitignore").write_text("/pipeline\n/steermoe\n")
    shutil.copy(ROOT / "params.yaml", root)
    shutil.copytree(ROOT / "configs", root / "configs")
    names = {f"GIT_{who}_{what}": "x@y.z" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "begin"]):
        subprocess.run(["git", *command], cwd=root, env=os.environ | names, check=True)
    return Snapshot(root, "identity", "name")


def test_the_profile_in_force_changes_nothing(snapshot: Snapshot) -> None:
    for profile in (Profile(snapshot, None), Profile(snapshot, "mini")):
        assert profile.name == "mini"
        assert profile.settings(profile.chosen(None)) == profile.settings() == []
        assert profile.reference(["steermoe", "linear"]) == "linear"
        assert profile.reference(["lora", "steermoe"]) == "lora"


def test_variants_of_a_profile_come_with_the_corpora_that_they_need(snapshot: Snapshot) -> None:
    paper = Profile(snapshot, "paper")
    assert paper.settings() == ["profile=paper", "corpora=[librispeech]"]
    chosen = paper.chosen(["linear", "steermoe-aishell2", "linear"])
    assert chosen == ["linear", "steermoe-aishell2"]
    switched, corpora = paper.settings(chosen)
    assert switched == "profile=paper"
    assert corpora == "corpora=[librispeech,aishell2]"
    everything = paper.chosen(["*"])
    assert {"steermoe", "lora", "steermoe-960h", "conformer-7b"} <= set(everything)


def test_own_variants_of_the_profile_in_force_add_their_corpora(snapshot: Snapshot) -> None:
    class InForce(Snapshot):
        def text(self, path: str) -> str:
            text = super().text(path)
            return text.replace("profile: mini", "profile: paper", 1) if path == "params.yaml" else text

    paper = InForce(snapshot.root, "identity", "name")
    assert Profile(paper, None).settings(["linear"]) == []
    [corpora] = Profile(paper, None).settings(["steermoe-clothoaqa"])
    assert corpora.startswith("corpora=[") and "clothoaqa" in corpora


def test_what_there_is_not_is_named(snapshot: Snapshot) -> None:
    with pytest.raises(ValueError, match=r"no configs/big.yaml in git"):
        Profile(snapshot, "big")
    with pytest.raises(
        ValueError, match=r"variants \['steermoe-960h'\]: name rows of `variants` in params.yaml and"
    ):
        Profile(snapshot, "mini").chosen(["steermoe-960h"])
    with pytest.raises(ValueError, match=r"variants \[\]"):
        Profile(snapshot, None).chosen([])
