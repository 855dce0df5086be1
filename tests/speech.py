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


TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "lamp",
            "description": "Turn on.",
            "parameters": {
                "type": "object",
                "properties": {
                    "room": {"type": "string", "enum": ["kitchen", "hall"]},
                    "level": {"type": "integer"},
                    "colours": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["room"],
            },
        },
    },
    {"type": "function", "function": {"name": "stop"}},
]
CALL = '{"name": "lamp", "arguments": {"room": "hall", "level": 3}}'


@pytest.fixture(scope="session")
def tone() -> np.ndarray:
    """A second of sound, which `caller` understands."""
    return np.sin(np.arange(16000) * 0.1).astype(np.float32)


@pytest.fixture(scope="session")
def caller(tone: np.ndarray, tiny_chat_dir: Path, tiny_variant: Callable[..., Any]) -> Any:
    """A model whose tiny Qwen2 was trained on a tone: with TOOLS to call the lamp, else to say `one two`."""
    import torch

    from steermoe import SteerMoE
    from steermoe.audio.augment import levelled
    from steermoe.data.dataset import collate
    from steermoe.data.prompts import encode_prompt, end_of_turn

    changes = {
        "llm.path": str(tiny_chat_dir), "prompts.format": "chat",
        "train_splits": {"folder": ["train"]},  # a folder may have sounds
    }  # fmt: skip
    variant = tiny_variant("linear", changes)
    model = SteerMoE.from_config(variant)
    model.llm.requires_grad_(True)
    items: list[Any] = []
    for tools, target in ((TOOLS, f"<tool_call>\n{CALL}\n</tool_call>"), (None, "one two")):
        prompt = encode_prompt(variant.prompts, model.tokenizer, "answer", "which lamp?", tools)
        ids = model.tokenizer.encode(target, add_special_tokens=False)
        items.append(
            {
                "features": model.features(levelled(tone)), "prefix_ids": prompt.prefix, "prompt_ids": prompt.suffix,
                "target_ids": [*ids, end_of_turn(model.tokenizer)], "index": len(items),
            }
        )  # fmt: skip
    batch = collate(items)
    optimizer = torch.optim.Adam(model.llm.parameters(), lr=3e-3)
    with torch.random.fork_rng(devices=[]):
        for _ in range(300):
            loss = model(**batch)
            optimizer.zero_grad()
            loss.loss.backward()
            optimizer.step()
            if loss.num_correct == loss.num_tokens and loss.loss < 0.05:
                break
    model.llm.requires_grad_(False)
    return model


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

    return SteerMoE.from_pretrained(ROOT / "pretrained/adapters/mini/steermoe")


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mini: Any
) -> Callable[..., SimpleNamespace]:
    """Runs `steermoe ...` in the project's root with the mini adapter loaded once: exit code, output, errors."""
    from steermoe.cli import main as cli
    from steermoe.cli import options as opening

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(opening, "open_model", lambda source, device, yes: mini)

    def run(*arguments: str) -> SimpleNamespace:
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run
