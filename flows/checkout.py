"""A checkout of its own for everything that runs: the project as it was when the flow began.

Not `dvc exp run --temp`: that takes the changes out of the user's files for a moment whenever an experiment starts,
and parallel ones share one stash. A clone beside them leaves the workspace alone, pins the code for all variants, shares
DVC's cache, and holds no lock that another one waits for. What is trained in it is in the cache, and is saved as an
experiment of the project (`dvc exp show`, `dvc exp apply`).
"""

import functools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML

from flows import commands, supervise

QUEUE = "refs/exps/celery/stash"  # where `dvc exp run --queue` puts an experiment that waits
REMOTE = "origin"
REFS = "refs/flows/"
CHECKOUTS = Path(".runs") / "checkouts"
WAIT_SECONDS = 0.2


class Snapshot:
    """The project at one moment: its HEAD, and what was changed in tracked files.

    Args:
        root: the project.
        identity: of the flow's run. The snapshot stays under `refs/flows/<identity>` until `forget`: a run that is
            taken up again by another worker goes on with the same code.
        name: for its experiments.

    Raises:
        RuntimeError: no git repository, or no commit.
    """

    def __init__(self, root: Path, identity: str, name: str) -> None:
        self.root, self.identity, self.name = root, identity, name
        kept = {
            part: _output(root, "git", "for-each-ref", "--format=%(objectname)", f"{REFS}{identity}/{part}")
            for part in ("head", "files")
        }
        try:
            self.head = kept["head"] or _output(root, "git", "rev-parse", "--verify", "HEAD")
        except RuntimeError as error:
            raise RuntimeError(
                f"{root}: flows need a git repository with a commit "
                f"(git init && git add -A && git commit -m begin); {error}"
            ) from None
        self.files = kept["files"] or _changed(root) or self.head
        for part in ("head", "files"):
            _output(root, "git", "update-ref", f"{REFS}{identity}/{part}", getattr(self, part))

    @functools.cached_property
    def cache(self) -> str:
        """The folder of the project's DVC cache."""
        return _output(self.root, "dvc", "cache", "dir")

    def forget(self) -> None:
        """Let git collect it."""
        forget(self.root, self.identity)

    def text(self, path: str) -> str:
        """A file of the snapshot.

        Raises:
            ValueError: there is none.
        """
        try:
            return _output(self.root, "git", "show", f"{self.files}:{path}")
        except RuntimeError:
            raise ValueError(f"{self.root}: no {path} in git; create it and `git add` it") from None

    def read(self, path: str) -> dict:
        """A YAML file of the snapshot; ValueError where there is none."""
        return YAML(typ="safe").load(self.text(path))

    def untracked(self) -> list[str]:
        """Files that git does not know, and the checkouts therefore lack."""
        return _output(self.root, "git", "ls-files", "--others", "--exclude-standard").splitlines()


def _changed(root: Path) -> str:
    """A commit of what was changed in tracked files, empty if nothing was; the files stay as they are."""
    if not _output(root, "git", "status", "--porcelain", "--untracked-files=no"):
        return ""  # `git stash create` fails where files were touched and not changed
    return _output(root, "git", "stash", "create")


def forget(root: Path, identity: str) -> None:
    """Let git collect the snapshot of a run."""
    for part in ("head", "files"):
        _output(root, "git", "update-ref", "-d", f"{REFS}{identity}/{part}")


@contextmanager
def opened(snapshot: Snapshot, name: str, settings: Sequence[str]) -> Iterator[Path]:
    """A checkout of the snapshot with `settings` selected, deleted at the end.

    Waits until what an earlier process of the same run left at work in it has ended.

    Args:
        snapshot: what to check out.
        name: of the checkout, and of the experiment that comes of it.
        settings: as for `dvc exp run --set-param`.

    Raises:
        RuntimeError: a setting that DVC refuses.
        EndedError: the flow's run ends.
    """
    root = snapshot.root
    folder = root / CHECKOUTS / name
    while not supervise.is_idle(folder):  # this run's process died, and its trainer writes a last checkpoint
        if commands.is_ending():
            raise commands.EndedError("the flow's run ends")
        time.sleep(WAIT_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _output(root, "git", "clone", "--quiet", "--no-checkout", str(root), str(folder))
        _output(folder, "git", "fetch", "--quiet", REMOTE, snapshot.files)
        _output(folder, "git", "checkout", "--quiet", "--detach", snapshot.head)
        _output(folder, "git", "restore", f"--source={snapshot.files}", "--staged", "--worktree", "--", ".")
        for name_of, value in (("cache.dir", snapshot.cache), ("core.autostage", "true")):
            _output(
                folder, "git", "config", "--file", ".dvc/config.local", name_of, value
            )  # DVC's format is git's
        if settings:
            _set(folder, settings)
        yield folder
    finally:
        if not commands.is_ending():  # else the supervisor does, as soon as nothing works in it
            shutil.rmtree(folder, ignore_errors=True)


def _set(folder: Path, settings: Sequence[str]) -> None:
    """Let DVC itself change the parameters: as an experiment that waits in the checkout's own queue, for nobody."""
    options = [word for setting in settings for word in ("-S", setting)]
    _output(folder, "dvc", "exp", "run", "--queue", *options)
    files = {_file(setting) for setting in settings}
    _output(folder, "git", "restore", f"--source={QUEUE}", "--staged", "--worktree", "--", *sorted(files))


def _file(setting: str) -> str:
    path, colon, _ = setting.partition("=")[0].rpartition(":")
    return path if colon else "params.yaml"


def environment(snapshot: Snapshot, name: str, is_repeated: bool) -> dict[str, str]:
    """What a stage in a checkout sees: work and runs belong to the project (DVC_ROOT), not to the checkout.

    All experiments of a flow's run are one execution in MLflow, named as the run. A stage that is repeated when it
    fails does so where another run has made its output while it waited: DVC's cache has it then.
    """
    return {
        "DVC_ROOT": str(snapshot.root),
        "STEERMOE_EXECUTION": snapshot.name,
        "DVC_EXP_NAME": name,
        "DVC_EXP_BASELINE_REV": snapshot.head,
        "PYTHONUNBUFFERED": "1",
    } | ({"STEERMOE_REPEATED": "1"} if is_repeated else {})


def save(folder: Path, name: str, targets: Sequence[str]) -> None:
    """Make the checkout's state an experiment of the project; one of the same name is replaced.

    Args:
        folder: the checkout.
        name: of the experiment.
        targets: stages, or files of stages: what has outputs to save.
    """
    _output(folder, "dvc", "exp", "save", "--force", "--name", name, *targets)
    refs = _output(folder, "git", "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    (ref,) = (ref for ref in refs if ref.endswith(f"/{name}"))
    _output(folder, "git", "push", "--quiet", "--force", REMOTE, f"{ref}:{ref}")


def _output(folder: Path, *command: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}
    done = subprocess.run(command, cwd=folder, env=inherited, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise RuntimeError(f"{' '.join(command)} (in {folder}) ended with {done.returncode}: {said}")
    return done.stdout.strip()
