"""Switch the profile in force."""

from pathlib import Path

from pipeline.options import Params


def main(profile: str, params: Params = Path("params.yaml")) -> None:
    """Put PROFILE in force: edits `profile` and `corpora` in params.yaml, nothing else."""
    from steermoe import config

    config.switch_profile(params, profile)
    print(f"profile {profile} is in force; `dvc repro` runs it")
