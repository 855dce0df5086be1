"""Select another profile or other variants."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.options import Chosen, Compared, Params, Reference

Profile = Annotated[str | None, typer.Argument(help="name of a file in configs/; default: the selected one")]


def main(
    profile: Profile = None,
    compare: Compared = None,
    corpora: Chosen = None,
    reference: Reference = None,
    params: Params = Path("params.yaml"),
) -> None:
    """Select PROFILE, its variants and the corpora that they need: edits params.yaml, nothing else.

    Without another PROFILE, corpora that are selected stay so.
    """
    from ruamel.yaml import YAML

    from steermoe import config

    selected = YAML(typ="safe").load(params.read_text(encoding="utf-8"))
    name = profile or selected["profile"]
    variants = None if compare is None else compare.split(",")
    if variants == ["*"]:
        variants = list(config.preview(params, name, list(selected["variants"])[:1]).variants)
    if variants is not None and reference is None:
        reference = selected["reference"] if selected["reference"] in variants else variants[0]
    named = None if corpora is None else corpora.split(",")
    if corpora is None and profile in (None, selected["profile"]) and variants is not None:
        named = list(selected["corpora"])
        try:
            config.preview(params, name, variants, named)
        except config.ConfigError:  # a variant reads others, too
            named = list(dict.fromkeys([*named, *config.preview(params, name, variants).corpora]))
    if (profile, compare, corpora, reference) != (None, None, None, None):
        config.switch_profile(params, name, variants, named, reference)
    settings = config.load(params)
    print(
        f"profile {settings.profile} is selected, with variants {', '.join(settings.compare)} and corpora "
        f"{', '.join(settings.corpora)}; `dvc repro` runs it"
    )
