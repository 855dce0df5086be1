"""The API reference in docs/ is that of the docstrings."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_api_reference_is_up_to_date() -> None:
    command = [sys.executable, "docs/api_reference.py", "--check"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0, (
        "run `python docs/api_reference.py`"
    )
