"""Switch the profile in force."""

from pathlib import Path

from pipeline.options import Chosen, Compared, Params, Reference


def main(
    profile: str,
    compare: Compared = None,
    corpora: Chosen = None,
    reference: Reference = None,
    params: Params = Path("params.yaml"),
) -> None:
    """Put PROFILE in force, with its corpora: edits params.yaml, nothing else."""
    from steermoe import config

    arms, named = (None if names is None else names.split(",") for names in (compare, corpora))
    config.switch_profile(params, profile, arms, named, reference)
    settings = config.load(params)
    print(
        f"profile {profile} is in force, with arms {', '.join(settings.compare)} and corpora "
        f"{', '.join(settings.corpora)}; `dvc repro` runs it"
    )
