"""The model card that an adapter is published with: what it is, how to use it, and its figures with their protocol."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from steermoe import __version__
from steermoe.config import of_the_hub
from steermoe.evaluation.predictions import METRICS, read_result
from steermoe.models.adapter import Merged
from steermoe.models.steermoe import SteerMoE

TEXT = """
# {name}

{what}

```python
from steermoe import SteerMoE

model = SteerMoE.from_pretrained("{name}")
print(model.transcribe("speech.wav"))
```

Set up to train on {training}, {length} at most, seed {seed}, with steermoe {version}.

## Evaluation

{evaluation}
"""

ADAPTER = """
An adapter of [SteerMoE](https://arxiv.org/abs/2510.13558): between a frozen speech encoder (`{encoder}`) and a frozen
language model (`{llm}`), {trained:,} trained parameters, method `{method}`. Neither frozen model is part of it: it is
used with both of them at hand.
""".strip()
WHOLE = """
A model of [SteerMoE](https://arxiv.org/abs/2510.13558), self-contained: in `encoder/` the speech encoder `{encoder}`,
in `llm/` the language model `{llm}`, and between them {trained:,} trained parameters, method `{method}`. {folded} The
licences of both base models hold for it.
""".strip()
FOLDED = "It was trained as `{trained_as}`; the low-rank adapters are folded into the weights."
UNTOUCHED = "The weights of both base models are as they were."
BEFORE_FOLDING = "Measured before the adapters were folded."


def model_card(
    model: SteerMoE, name: str, evaluations: Path | None = None, merged: Merged | None = None
) -> ModelCard:
    """The card of an adapter.

    Args:
        model: the adapter, loaded.
        name: of the repository that it will be in.
        evaluations: what stage `eval` wrote about this variant, a folder a corpus; None: nothing.
        merged: what it was made of, where it is merged.

    Raises:
        ValueError: there are no evaluations in the folder, or they have no protocol.
    """
    variant, steps = model.config, model.config.training.max_steps
    named = {"encoder": variant.encoder.path, "llm": variant.llm.path}
    if merged is not None:
        named = {"encoder": merged.encoder, "llm": merged.llm}
    data = ModelCardData(
        library_name="steermoe",
        pipeline_tag="automatic-speech-recognition",
        tags=["steermoe", variant.method],
        base_model=[path for path in named.values() if of_the_hub(path) and not Path(path).exists()] or None,
    )
    evaluation = "None was published with it." if evaluations is None else _tables(evaluations)
    if merged is not None and merged.method != variant.method and evaluations is not None:
        evaluation = f"{BEFORE_FOLDING}\n\n{evaluation}"
    text = TEXT.format(
        name=name,
        what=_what(model, named, merged),
        training=", ".join(
            f"{corpus} ({', '.join(splits)})" for corpus, splits in variant.train_splits.items()
        ),
        length=f"{variant.training.epochs} epochs" if steps is None else f"{steps:,} steps",
        seed=variant.seed,
        version=__version__,
        evaluation=evaluation,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def _what(model: SteerMoE, named: Mapping[str, str], merged: Merged | None) -> str:
    trained = sum(p.numel() for group in model.parameter_groups().values() for p in group)
    method = model.config.method
    if merged is None:
        return ADAPTER.format(**named, trained=trained, method=method)
    folded = FOLDED.format(trained_as=merged.method) if merged.method != method else UNTOUCHED
    return WHOLE.format(**named, trained=trained, method=method, folded=folded)


def _tables(evaluations: Path) -> str:
    folders = sorted(path.parent for path in evaluations.glob(f"*/{METRICS}"))
    if not folders:
        raise ValueError(
            f"{evaluations}: found no evaluation; expected <corpus>/{METRICS} as stage eval writes it"
        )
    return "\n\n".join(_table(folder) for folder in folders)


def _table(folder: Path) -> str:
    result = read_result(folder)
    if result.skipped is not None:
        return f"### {folder.name}\n\nNot evaluated: {result.skipped}"
    protocol = result.summary["protocol"]
    rows = ["| split | task | metric | value | interval | n |", "|---|---|---|--:|--:|--:|"]
    for split, tasks in result.summary["own"].items():
        for task, figures in tasks.items():
            rows += [_row(split, task, metric, f) for metric, f in figures.items() if isinstance(f, Mapping)]
    lines = [
        f"### {folder.name}",
        "\n".join(rows),
        f"In %; normaliser `{protocol['normalizer']}`; decoding: {protocol['decoding']}; intervals: "
        f"{protocol['interval']}, {protocol['bootstrap_samples']} resamples, seed {protocol['seed']}.",
    ]
    return "\n\n".join(lines)


def _row(split: str, task: str, metric: str, figure: Mapping[str, Any]) -> str:
    value, low, high = (f"{100 * figure[key]:.1f}" for key in ("value", "low", "high"))
    return f"| {split} | {task} | {metric} | {value} | [{low}, {high}] | {figure['n']} |"
