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


def test_an_error_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_kill_leaves_no_half_file(tmp_path: Path):
    code = f"""
import os, signal
from pathlib import Path
from steermoe.atomic_io import Staging, written_whole
staging = Staging(Path({str(tmp_path / "out")!r}), {KEY!r})
staging.part("a").write_text("finished")
with written_whole(staging.part("b")) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    with Staging(tmp_path / "out", KEY) as staging:
        assert [path.name for path in staging.files.iterdir()] == ["a"]
        write_text(staging.part("b"), "whole")
        staging.commit()
    found = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert found == {"a": "finished", "b": "whole"}


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
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert found == ["folder/below", "new"]
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
        with pytest.raises(StagingBusyError, match=rf"process {os.getpid()} makes this output already"):
            Staging(tmp_path / "out", KEY)


HOLDER = """
import os, sys
from pathlib import Path
from steermoe.atomic_io import Staging, write_text
with Staging(Path(sys.argv[1]), {key}) as staging:
    print("held", flush=True)
    write_text(staging.part("a"), "begun")
    sys.stdin.readline()
    {end}
"""


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`begin(name, end)`: a process that makes the output `name`, and comes to its `end` when it gets a line."""
    processes = []

    def make(name: str, end: str = "staging.commit()", **changes: str) -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", HOLDER.format(key=KEY, end=end), str(tmp_path / name)], text=True,
                env=os.environ | {"PYTHONPATH": str(Path.cwd())} | changes,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return processes[-1]

    yield make
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("end", ["staging.commit()", "os.kill(os.getpid(), 9)"])
def test_a_second_process_waits_and_goes_on(begin: Callable[..., Any], tmp_path: Path, end: str) -> None:
    """However the first ends: with what it left unfinished, or anew. A signal ends the wait."""
    holder = begin("first", end)
    assert holder.stdout.readline() == "held\n"
    waiting, interrupted = begin("second"), begin("third")
    for process in (waiting, interrupted):
        assert f"Waiting for process {holder.pid} on " in process.stderr.readline()
    interrupted.send_signal(signal.SIGTERM)
    assert interrupted.wait(timeout=300) == -signal.SIGTERM and holder.poll() is None
    holder.communicate("go on\n", timeout=300)
    output, errors = waiting.communicate("go on\n", timeout=300)
    assert (waiting.returncode, output) == (0, "held\n"), errors
    assert (tmp_path / "second" / "a").read_text() == "begun"
    assert list((tmp_path / ".runs").iterdir()) == []


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
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path


def test_digests_see_every_change(tmp_path: Path):
    folder = tmp_path / "tree"
    write_text(folder / "a" / "b", "one")
    digests = [tree_digest(folder)]
    assert tree_digest(folder) == digests[0]
    write_text(folder / "a" / "c", "")
    digests.append(tree_digest(folder))
    os.utime(folder / "a" / "b", ns=(1, 1))
    digests.append(tree_digest(folder))
    (folder / "a" / "c").rename(folder / "a" / "d")
    digests.append(tree_digest(folder))
    assert len(set(digests)) == 4
    assert code_digest("audio") == code_digest("audio") != code_digest("audio", "data") != code_digest()
