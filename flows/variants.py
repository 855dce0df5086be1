"""Which variants a flow means, of which profile, and the settings that put them selected."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML

from flows import checkout

PARAMS = "params.yaml"


class Profile:
    """A profile of a snapshot, with the rows of `variants` of params.yaml and its own.

    Args:
        snapshot: the project.
        profile: null: the one selected.

    Raises:
        ValueError: there is no such profile.
    """

    def __init__(self, snapshot: checkout.Snapshot, profile: str | None) -> None:
        self._snapshot = snapshot
        self._params = snapshot.read(PARAMS)
        self.name: str = profile or self._params["profile"]
        self._is_other = self.name != self._params["profile"]
        self._own: dict[str, object] = snapshot.read(self._file).get("variants") or {}

    def chosen(self, variants: list[str] | None) -> list[str]:
        """The variants that are meant, each once and in order: null: those selected; `["*"]`: all.

        Raises:
            ValueError: one that there is not, or none.
        """
        rows = list(dict.fromkeys((*self._params["variants"], *self._own)))
        meant = self._params["compare"] if variants is None else rows if variants == ["*"] else variants
        chosen = list(dict.fromkeys(meant))
        unknown = [variant for variant in chosen if variant not in rows]
        if unknown or not chosen:
            where = f"`variants` in {PARAMS} and {self._file}"
            raise ValueError(f"variants {unknown or chosen}: name rows of {where}, which are {rows}")
        return chosen

    def reference(self, chosen: Sequence[str]) -> str:
        """The variant that others are compared with."""
        return self._params["reference"] if self._params["reference"] in chosen else chosen[0]

    def settings(self, chosen: Sequence[str] | None = None) -> list[str]:
        """What puts the selected profile with the corpora that variants need (null: those selected).

        Rows of params.yaml have the profile's choice of corpora; only the profile's own may name others.

        Raises:
            ValueError: the configuration would not be valid.
        """
        if self._is_other:
            return [f"profile={self.name}", _listed("corpora", self._needed(chosen))]
        if not self._own.keys() & set(chosen or ()):
            return []
        there = self._params["corpora"]
        return [_listed("corpora", list(dict.fromkeys((*there, *self._needed(chosen)))))]

    @property
    def _file(self) -> str:
        return f"configs/{self.name}.yaml"

    def _needed(self, chosen: Sequence[str] | None) -> list[str]:
        """Corpora of the profile, as the project's own command puts them selected."""
        command = [sys.executable, "-m", "pipeline", "profile", self.name]
        if chosen is not None:
            command += ["--compare", ",".join(chosen), "--reference", chosen[0]]
        with tempfile.TemporaryDirectory() as folder:
            params = Path(folder) / PARAMS
            for path in (PARAMS, self._file):
                copy = Path(folder) / path
                copy.parent.mkdir(exist_ok=True)
                copy.write_text(self._snapshot.text(path), encoding="utf-8")
            command += ["--params", str(params)]
            done = subprocess.run(
                command, cwd=self._snapshot.root, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise ValueError(f"profile {self.name}: {done.stderr.strip()[-2000:]}")
            return list(YAML(typ="safe").load(params.read_text(encoding="utf-8"))["corpora"])


def selected(variants: Sequence[str], reference: str) -> list[str]:
    """The settings that put selected variants."""
    return [_listed("compare", variants), f"reference={reference}"]


def _listed(setting: str, names: Sequence[str]) -> str:
    return f"{setting}=[{','.join(names)}]"
