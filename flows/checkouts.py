"""Temporary clones of the project, in which flows run, so that the user's files stay as they are.

`dvc exp run --temp` takes uncommitted changes out of the user's files for a moment. A clone does not; it shares DVC's
cache, and its result becomes a DVC experiment of the project.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML

CHECKOUTS = Path(".runs") / "checkouts"


@contextmanager
def clone(root: Path, name: str) -> Iterator[Path]:
    """Clone the project with the uncommitted changes of tracked files; delete the clone at the end."""
    folder = root / CHECKOUTS / name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        try:
            head = output(root, "git", "rev-parse", "--verify", "HEAD")
        except RuntimeError as error:
            hint = "git init && git add -A && git commit -m begin"
            raise RuntimeError(f"{root}: flows need a git repository with a commit ({hint})") from error
        is_changed = output(root, "git", "status", "--porcelain", "--untracked-files=no")
        files = output(root, "git", "stash", "create") if is_changed else head
        output(root, "git", "clone", "--quiet", "--shared", "--no-checkout", str(root), str(folder))
        output(folder, "git", "checkout", "--quiet", "--detach", head)
        output(folder, "git", "restore", f"--source={files}", "--staged", "--worktree", "--", ".")
        for name_of, value in (
            ("cache.dir", output(root, "dvc", "cache", "dir")),
            ("core.autostage", "true"),
        ):
            output(
                folder, "git", "config", "--file", ".dvc/config.local", name_of, value
            )  # DVC's format is git's
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def copy(source: Path, name: str, settings: Sequence[str]) -> Iterator[Path]:
    """Copy a clone and change parameters in it, as `dvc exp run --set-param`; delete the copy at the end."""
    from dvc.exceptions import DvcException
    from dvc.utils.cli_parse import to_path_overrides
    from dvc.utils.hydra import apply_overrides

    folder = source.with_name(name)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        shutil.copytree(source, folder, symlinks=True)
        for path, overrides in to_path_overrides(settings).items():
            apply_overrides(folder / path, overrides)
        yield folder
    except DvcException as error:
        raise ValueError(f"settings: found {list(settings)}; {error}: {error.__cause__}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def select(folder: Path, profile: str | None, variants: list[str] | None) -> tuple[str, list[str], str]:
    """Select profile and variants in a clone, with the corpora that these need; null: those selected.

    Returns:
        The profile, the variants, and the reference among them.
    """
    command = ["-m", "pipeline", "profile", *([profile] if profile else [])]
    if variants is not None:
        command += ["--compare", ",".join(variants)]
    try:
        output(folder, sys.executable, *command)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    params = YAML(typ="safe").load((folder / "params.yaml").read_text(encoding="utf-8"))
    return params["profile"], params["compare"], params["reference"]


def save_experiment(folder: Path, name: str, targets: Sequence[str]) -> None:
    """Make the state of a clone an experiment of the project; replace one of the same name."""
    output(folder, "dvc", "exp", "save", "--force", "--name", name, *targets)
    refs = output(folder, "git", "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    (ref,) = (ref for ref in refs if ref.endswith(f"/{name}"))
    output(folder, "git", "push", "--quiet", "--force", "origin", f"{ref}:{ref}")


def output(folder: Path, *command: str) -> str:
    """Run a command in a folder and return what it prints, or raise RuntimeError with that."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}
    done = subprocess.run(command, cwd=folder, env=inherited, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise RuntimeError(f"{' '.join(command)} (in {folder}) ended with {done.returncode}: {tail}")
    return done.stdout.strip()
