"""What is freed is kept: the pages of a large block are not asked for again."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from steermoe.training.heap import keep_freed_memory

ROOT = Path(__file__).parents[2]
PROGRAM = """
import resource, sys, torch
from steermoe.training.heap import ADAPTED, KEPT, keep_freed_memory
assert keep_freed_memory(KEPT if sys.argv[1] == "kept" else ADAPTED)
torch.set_num_threads(1)
def faults():
    torch.ones(2**24).add_(1)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = [faults() for _ in range(16)][-1]  # the heap has grown by then
print([faults() for _ in range(4)][-1] - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_block_that_was_freed_costs_no_faults_again() -> None:
    found = {}
    for way in ("kept", "adapted"):
        command = [sys.executable, "-c", PROGRAM, way]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found[way] = int(run.stdout)
    assert found["kept"] < 100 and found["adapted"] > 4 * found["kept"] + 100


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory()
