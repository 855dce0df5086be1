"""Select a profile, variants and corpora by editing params.yaml."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from steermoe.atomic_io import write_text
from steermoe.config.load import Config, checked, needed, profile_file, read


def switch_profile(
    params: Path,
    profile: str,
    compare: Sequence[str] | None = None,
    corpora: Sequence[str] | None = None,
    reference: str | None = None,
) -> None:
    """Select a profile: set `profile` and `corpora` in params.yaml, and keep everything else.

    Args:
        params: the file.
        profile: name of a profile.
        compare: variants to select; None: the selected ones.
        corpora: corpora to select; None: those that the selected variants are trained on or chosen by.
        reference: the variant that p-values compare with; None: unchanged.

    Raises:
        ConfigError: the configuration would not be valid; params.yaml is then left alone.
    """
    _rewrite(params, _switched(params, profile, compare, corpora, reference))


def preview(
    params: Path, profile: str, compare: Sequence[str] | None = None, corpora: Sequence[str] | None = None
) -> Config:
    """Return the configuration that `switch_profile` would select, without writing anything.

    Raises:
        ConfigError: it would not be valid.
    """
    reference = compare[0] if compare else None
    return checked(params, read(params) | _switched(params, profile, compare, corpora, reference))


def _corpora(params: Path, values: dict[str, Any]) -> list[str]:
    """Return the names of all corpora of the profile in `values`."""
    there = read(profile_file(params, values)).get("corpora")
    return list(there) if isinstance(there, dict) else []


def _switched(
    params: Path,
    profile: str,
    compare: Sequence[str] | None,
    corpora: Sequence[str] | None,
    reference: str | None,
) -> dict[str, Any]:
    """Return the keys of params.yaml that change."""
    changes: dict[str, Any] = {"profile": profile}
    values = read(params) | changes
    if compare is not None:
        changes["compare"] = list(compare)
    if reference is not None:
        changes["reference"] = reference
    there = _corpora(params, values)
    whole = checked(params, values | changes | {"corpora": there})
    if corpora is None:
        wanted = needed([whole.variants[variant] for variant in whole.compare], whole.corpora)
        changes["corpora"] = wanted
    else:  # unknown names at the end, where they are reported
        changes["corpora"] = sorted(corpora, key=[*there, *corpora].index)
    return changes


def _rewrite(params: Path, changes: dict[str, Any]) -> None:
    checked(params, read(params) | changes)
    yaml = YAML()
    yaml.default_flow_style = False  # as `dvc exp run -S` writes it
    tree = yaml.load(params.read_text(encoding="utf-8"))
    tree.update(changes)
    text = io.StringIO()
    yaml.dump(tree, text)
    write_text(params, text.getvalue())
