"""A corpus to shards by real processes: the same bytes for any number of workers, and after any death."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from steermoe.data.limits import LeftOut, Limits, RejectedError
from steermoe.data.parts import PartError
from steermoe.data.preprocess import preprocess
from steermoe.data.rows import ShardError
from steermoe.data.shards import read_rows
from steermoe.data.skipped import skipped_reason, write_skipped

READERS = Path(__file__).parent / "readers"


@pytest.fixture
def tones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(READERS)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    import tones  # pyright: ignore[reportMissingImports]

    return tones


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "source.txt").write_text("tones")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def begun(log: Path) -> list[str]:
    return [line.split()[0] for line in log.read_text().splitlines()]


def test_shards_and_summary(tones: Any, source: Path, tmp_path: Path):
    settings = tones.Settings(log=tmp_path / "log")
    summary = preprocess(tones, settings, source, tmp_path / "out", workers=2)
    seconds = 0.1 + 0.2 + 0.3 + 0.4
    assert summary == {
        "splits": {
            "train": {
                "shards": 2,
                "rows": 8,
                "seconds": pytest.approx(2 * seconds),
                "dropped": 0,
                "rejected": 0,
            },
            "test": {"shards": 1, "rows": 4, "seconds": pytest.approx(seconds), "dropped": 0, "rejected": 0},
        }
    }
    out = tmp_path / "out"
    assert json.loads((out / "summary.json").read_text()) == summary
    names = [
        "left_out.jsonl",
        "summary.json",
        "test-00000.parquet",
        "train-00000.parquet",
        "train-00001.parquet",
    ]
    assert sorted(contents(out)) == names
    rows = read_rows(out, ["train", "test"])
    assert rows["transcript"].to_list() == [
        f"{split} {part} {number}"
        for split, count in (("train", 2), ("test", 1))
        for part in range(count)
        for number in range(4)
    ]
    # Every part ran in a process of its own, so the state that the reader carries did not reach the next.
    assert len(set(settings.log.read_text().split()[1::2])) == 3
    assert len({audio for audio in rows["audio"]}) == 4
    # One worker at a time gives the same bytes.
    again = settings.model_copy(update={"parts": {"train": 2, "test": 0}})
    preprocess(tones, again, source, tmp_path / "again", workers=1)
    for name in ("train-00000.parquet", "train-00001.parquet"):
        assert contents(tmp_path / "again")[name] == contents(out)[name]


def test_killed_and_repeated(tones: Any, source: Path, tmp_path: Path):
    settings = tones.Settings(log=tmp_path / "log", pause=2.0, parts={"train": 2, "test": 0})
    out = tmp_path / "out"
    command = f"""
import sys
sys.path.insert(0, {str(READERS)!r})
from pathlib import Path
import tones
from steermoe.data.preprocess import preprocess
settings = tones.Settings.model_validate_json({settings.model_dump_json()!r})
preprocess(tones, settings, Path({str(source)!r}), Path({str(out)!r}), workers=2)
"""
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen([sys.executable, "-c", command], env=environment)
    deadline = time.monotonic() + 300
    # Both parts have begun: a worker that outlives the process would else begin its part after it.
    while not (
        list((tmp_path / ".runs").glob("*/files/train-00000.parquet")) and len(begun(settings.log)) == 2
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    (finished,) = (tmp_path / ".runs").glob("*/files/train-00000.parquet")
    inode = finished.stat().st_ino
    before = begun(settings.log)
    preprocess(tones, settings, source, out, workers=2)
    assert begun(settings.log)[len(before) :] == ["train-1"]
    assert (out / "train-00000.parquet").stat().st_ino == inode
    assert not list((tmp_path / ".runs").iterdir())
    undisturbed = tones.Settings(log=tmp_path / "log", parts={"train": 2, "test": 0})
    preprocess(tones, undisturbed, source, tmp_path / "undisturbed", workers=2)
    assert contents(out) == contents(tmp_path / "undisturbed")
    orphan = next(
        line.split()[1] for line in settings.log.read_text().splitlines() if line.startswith("train-1")
    )
    while Path(f"/proc/{orphan}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_data_stages_do_without_torch():
    modules = "corpora.digits, corpora.synthetic, data.preprocess, data.shards, data.batching"
    code = "; ".join(f"import steermoe.{name}" for name in modules.split(", "))
    heavy = {"torch", "transformers", "mlflow"}
    check = f"import sys; sys.exit(str(sorted({heavy} & sys.modules.keys()) or ''))"
    process = subprocess.run([sys.executable, "-c", f"{code}; {check}"], capture_output=True, check=False)
    assert process.stderr.decode().strip() == ""


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "raise",
            r"tones: part train-00001\.parquet failed; repeat (.|\n)*ValueError: row 2 has no transcript",
        ),
        ("die", r"tones: part train-00001\.parquet failed; .*\nits process died \(exit code -9;"),
    ],
)
def test_a_part_that_fails(tones: Any, source: Path, tmp_path: Path, fault: str, message: str):
    settings = tones.Settings(log=tmp_path / "log", fault=fault, parts={"train": 2, "test": 0})
    with pytest.raises(PartError, match=message):
        preprocess(tones, settings, source, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(PartError):
        preprocess(tones, settings, source, tmp_path / "out", workers=1)
    assert begun(settings.log) == ["train-0", "train-1", "train-1"]


def test_bad_rows_are_not_kept(tones: Any, source: Path, tmp_path: Path):
    settings = tones.Settings(log=tmp_path / "log", fault="target", parts={"train": 2, "test": 0})
    with pytest.raises(
        ShardError, match=r"train-00001\.parquet: .*\n  row 0, column target: found 'another'"
    ):
        preprocess(tones, settings, source, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / ".runs").glob("*/files/train-00001.parquet"))


def test_ids_are_unique_over_all_shards(tones: Any, source: Path, tmp_path: Path):
    settings = tones.Settings(log=tmp_path / "log", fault="twice", parts={"train": 2, "test": 0})
    with pytest.raises(
        ShardError, match=r"train-00001\.parquet: column source_id: 'train-0-0' is in .*00000"
    ):
        preprocess(tones, settings, source, tmp_path / "out", workers=2)


def test_long_utterances_are_dropped_and_counted(tones: Any, source: Path, tmp_path: Path):
    settings = tones.Settings(log=tmp_path / "log", parts={"train": 1, "test": 0})
    summary = preprocess(tones, settings, source, tmp_path / "out", limits=Limits(max_seconds=0.25))
    assert summary["splits"]["train"] == {
        "shards": 1, "rows": 2, "seconds": pytest.approx(0.3), "dropped": 2, "rejected": 0,
    }  # fmt: skip
    assert read_rows(tmp_path / "out", ["train"])["seconds"].max() == 0.2


def test_a_skipped_corpus_stays_skipped(
    tones: Any, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    write_skipped(source, "no network")
    settings = tones.Settings(log=tmp_path / "log")
    assert preprocess(tones, settings, source, tmp_path / "out") == {"skipped": "no network"}
    assert list(contents(tmp_path / "out")) == ["SKIPPED.json"]
    assert skipped_reason(tmp_path / "out") == "no network"
    assert read_rows(tmp_path / "out", ["train"]).is_empty()
    assert "SKIPPED out: no network" in capsys.readouterr().err
    assert not settings.log.exists()


def test_something_must_be_left_of_a_split():
    gone = [LeftOut(f"row {i}", "train", "dropped", "target of 99 tokens " * 50) for i in range(20)]
    with pytest.raises(RejectedError, match=r"nothing is left of split 'train'") as caught:
        Limits().check_rejected(gone, {"train": 0, "test": 4})
    assert len(str(caught.value)) < 4000
    Limits().check_rejected(gone, {"train": 1, "test": 4})
