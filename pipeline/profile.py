"""Switch the selected profile."""

from pathlib import Path

from pipeline.options import Chosen, Compared, Params, Reference


def main(
    profile: str,
    compare: Compared = None,
    corpora: Chosen = None,
    reference: Reference = None,
    params: Params = Path("params.yaml"),
) -> None:
    """Put PROFILE selected, with its corpora: edits params.yaml, nothing else."""
    from steermoe import config

    variants, named = (None if names is None else names.split(",") for names in (compare, corpora))
    config.switch_profile(params, profile, variants, named, reference)
    settings = config.load(params)
    print(
        f"profile {profile} is selected, with variants {', '.join(settings.compare)} and corpora "
        f"{', '.join(settings.corpora)}; `dvc repro` runs it"
    )
