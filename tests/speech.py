"""Speech whose words and times are known, and the mini model that came with the project."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# The engine carries state from call to call: only a process of its own speaks the same every time.
SPEAK = """
import json, sys
import numpy as np
from steermoe.audio import synthesis
from steermoe.corpora import grammar, synthetic
rng, engine = np.random.default_rng(3), synthesis.Synthesizer()
sentences = grammar.sentences(rng, "test")
said, arrays = [], {}
for number in range(8):
    text = next(sentences).text
    samples, onsets, _ = synthetic.record(engine, rng, text, synthetic.CASTS["clean"], "clean")
    said.append({"text": text, "onsets": onsets})
    arrays[str(number)] = samples.astype(np.float32)
np.savez(sys.argv[1], **arrays)
print(json.dumps(said))
"""


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> list[SimpleNamespace]:
    """Eight sentences: `text`, `onsets` of its words in seconds, `samples` (n,) float32 at 16 kHz."""
    path = tmp_path_factory.mktemp("spoken") / "samples.npz"
    run = [sys.executable, "-c", SPEAK, str(path)]
    said = json.loads(subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    with np.load(path) as arrays:
        return [SimpleNamespace(**each, samples=arrays[str(n)]) for n, each in enumerate(said)]


@pytest.fixture(scope="session")
def talk(spoken: list[SimpleNamespace]) -> np.ndarray:
    """The first four, each followed by 0.8 s of silence."""
    silence = np.zeros(12_800, np.float32)
    return np.concatenate([piece for each in spoken[:4] for piece in (each.samples, silence)])


@pytest.fixture(scope="session")
def mini() -> Any:
    """The trained mini adapter."""
    from steermoe import SteerMoE

    return SteerMoE.from_pretrained(ROOT / "pretrained/adapters/steermoe")


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mini: Any
) -> Callable[..., SimpleNamespace]:
    """Runs `steermoe ...` in the project's root with the mini adapter loaded once: exit code, output, errors."""
    from steermoe.cli import main as cli
    from steermoe.cli import options as opening

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(opening, "open_model", lambda source, device: mini)

    def run(*arguments: str) -> SimpleNamespace:
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run
