"""Nothing half-written is taken for whole, and what was finished before a kill is found again."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steermoe.atomic_io import (
    Staging,
    StagingBusyError,
    code_digest,
    project_root,
    tree_digest,
    write_text,
    written_whole,
)

KEY = {"corpus": "tones", "seed": 1}


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def killed_while(code: str) -> None:
    """Run `code` in a process that must kill itself."""
    process = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr


def test_an_error_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_kill_leaves_no_half_file(tmp_path: Path):
    killed_while(f"""
import os, signal
from pathlib import Path
from steermoe.atomic_io import Staging, written_whole
staging = Staging(Path({str(tmp_path / "out")!r}), {KEY!r})
staging.part("a").write_text("finished")
with written_whole(staging.part("b")) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
""")
    with Staging(tmp_path / "out", KEY) as staging:
        assert [path.name for path in staging.files.iterdir()] == ["a"]
        write_text(staging.part("b"), "whole")
        staging.commit()
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {
        "a": "finished",
        "b": "whole",
    }


def test_commit_replaces_the_output_and_forgets_the_work(tmp_path: Path):
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    (out / "stale").write_text("of an earlier run")
    with Staging(out, KEY) as staging:
        write_text(staging.part("new"), "new")
        write_text(staging.part("folder/below"), "below")
        write_text(staging.scratch / "notes", "not an output")
        assert (out / "stale").exists()
        staging.commit()
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "folder/below",
        "new",
    ]
    assert list(out.parent.iterdir()) == [out]
    assert list((tmp_path / ".runs").iterdir()) == []
    with Staging(out, KEY) as again:
        assert list(again.files.iterdir()) == []


def test_another_key_is_other_work(tmp_path: Path):
    with Staging(tmp_path / "out", KEY) as one:
        write_text(one.part("a"), "1")
    with Staging(tmp_path / "out", KEY | {"seed": 2}) as other:
        assert not other.part("a").exists()
    with Staging(tmp_path / "elsewhere", {"seed": 1, "corpus": "tones"}) as same:
        assert same.part("a").read_text() == "1"


def test_held_alone_until_its_holder_is_gone(tmp_path: Path):
    with Staging(tmp_path / "out", KEY):
        with pytest.raises(StagingBusyError, match=rf"process {os.getpid()} makes this output already"):
            Staging(tmp_path / "out", KEY)
        Staging(tmp_path / "out", KEY | {"seed": 2}).close()
    killed_while(f"""
import os, signal
from pathlib import Path
from steermoe.atomic_io import Staging
staging = Staging(Path({str(tmp_path / "out")!r}), {KEY!r})
os.kill(os.getpid(), signal.SIGKILL)
""")
    Staging(tmp_path / "out", KEY).close()


HOLDER = """
import sys, time
from pathlib import Path
from steermoe.atomic_io import Staging, write_text
with Staging(Path(sys.argv[1]), {key}) as staging:
    print("held", flush=True)
    write_text(staging.part("a"), "begun")
    sys.stdin.readline()
    {end}
"""


def begun(out: Path, end: str, **changes: str) -> subprocess.Popen[str]:
    """A process that makes `out`, and comes to its `end` when it is told a line."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(key=KEY, end=end), str(out)], text=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())} | changes,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], subprocess.Popen[str]]]]:
    """`pair(end)`: a process that holds a work folder, and a second that waits for it and has said so."""
    processes = []

    def make(end: str, **changes: str) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
        holder = begun(tmp_path / "first", end)
        processes.append(holder)
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        waiting = begun(tmp_path / "second", "staging.commit()", **changes)
        processes.append(waiting)
        assert waiting.stderr is not None
        assert f"waits for process {holder.pid}, which makes the same" in waiting.stderr.readline()
        return holder, waiting

    yield make
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("end", ["staging.commit()", "raise SystemExit(1)", "os.kill(os.getpid(), 9)"])
def test_the_second_waits_and_goes_on(pair: Callable[..., Any], tmp_path: Path, end: str) -> None:
    """However the first ends; with what it left unfinished, or anew."""
    holder, waiting = pair(f"import os; {end}")
    holder.communicate("go on\n", timeout=300)
    output, errors = waiting.communicate("go on\n", timeout=300)
    assert (waiting.returncode, output) == (0, "held\n"), errors
    assert (tmp_path / "second" / "a").read_text() == "begun"
    assert ("made this output meanwhile" in errors) == ("commit" in end)
    assert list((tmp_path / ".runs").iterdir()) == []


def test_who_is_repeated_is_told_that_it_is_made(pair: Callable[..., Any], tmp_path: Path) -> None:
    holder, waiting = pair("staging.commit()", STEERMOE_REPEATED="1")
    holder.communicate("go on\n", timeout=300)
    _, errors = waiting.communicate(timeout=300)
    assert waiting.returncode == 1
    assert f"StagingBusyError: process {holder.pid} made" in errors
    assert list((tmp_path / ".runs").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait(pair: Callable[..., Any], number: signal.Signals) -> None:
    holder, waiting = pair("staging.commit()")
    waiting.send_signal(number)
    assert waiting.wait(timeout=300) == -number
    assert holder.poll() is None


def test_output_on_another_file_system(tmp_path: Path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system to move to")
    out = other / f"steermoe-staging-{os.getpid()}" / "out"
    try:
        with Staging(out, KEY) as staging:
            write_text(staging.part("folder/a"), "moved")
            staging.commit()
        assert (out / "folder" / "a").read_text() == "moved"
        assert list(out.parent.iterdir()) == [out]
    finally:
        (out / "folder" / "a").unlink()
        for folder in (out / "folder", out, out.parent):
            folder.rmdir()


def test_project_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert project_root() == tmp_path
    monkeypatch.delenv("DVC_ROOT")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert project_root() == tmp_path / "here"


def test_tree_digest_sees_every_change(tmp_path: Path):
    folder = tmp_path / "tree"
    write_text(folder / "a" / "b", "one")
    digests = [tree_digest(folder)]
    assert tree_digest(folder) == digests[0]
    write_text(folder / "a" / "c", "")
    digests.append(tree_digest(folder))
    write_text(folder / "a" / "b", "two")
    os.utime(folder / "a" / "b", ns=(1, 1))
    digests.append(tree_digest(folder))
    (folder / "a" / "c").rename(folder / "a" / "d")
    digests.append(tree_digest(folder))
    assert len(set(digests)) == 4


def test_code_digest_differs_by_package():
    assert code_digest("audio") == code_digest("audio") != code_digest("audio", "data")
