"""Write the model card of a published adapter: what it is, how to use it, and its figures with their protocol."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from steermoe import __version__
from steermoe.config import of_the_hub
from steermoe.evaluation.predictions import Result
from steermoe.models.checkpoint import Merged
from steermoe.models.steermoe import SteerMoE
from steermoe.weights import NAMED

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
language model (`{llm}`), {trained:,} trained parameters, method `{method}`. Neither frozen model is part of it; it
needs both of them.
""".strip()
MERGED = """
A model of [SteerMoE](https://arxiv.org/abs/2510.13558), self-contained: in `encoder/` the speech encoder `{encoder}`,
in `llm/` the language model `{llm}`, and between them {trained:,} trained parameters, method `{method}`. {folded} The
licences of both base models hold for it.
""".strip()
FOLDED = "It was trained as `{trained_as}`; the low-rank adapters are folded into the weights."
UNTOUCHED = "The weights of both base models are unchanged."


def adapter_card(
    model: SteerMoE,
    name: str,
    results: Mapping[str, Result] | None = None,
    merged: Merged | None = None,
) -> ModelCard:
    """Return the card of an adapter.

    Args:
        model: the adapter, loaded.
        name: of its repository.
        results: of stage `eval`, by corpus; None: no figures.
        merged: what it was made of, where it is merged.
    """
    variant, steps = model.config, model.config.training.max_steps
    named = {"encoder": variant.encoder.path, "llm": variant.llm.path}
    if merged is not None:
        named = {"encoder": merged.encoder, "llm": merged.llm}
    data = ModelCardData(
        library_name="steermoe",
        pipeline_tag="automatic-speech-recognition",
        tags=["steermoe", variant.method],
        base_model=[origin for path in named.values() if (origin := _origin(path))] or None,
    )
    evaluation = "None was published with it."
    if results is not None:
        evaluation = "\n\n".join(_table(corpus, result) for corpus, result in results.items())
        if merged is not None and merged.method != variant.method:
            evaluation = f"Measured before the adapters were folded.\n\n{evaluation}"
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


def _origin(path: str) -> str | None:
    """Return the hub id of a base model by its path; None of a folder or file."""
    if path in NAMED:
        return NAMED[path].origin
    return path if of_the_hub(path) and not Path(path).exists() else None


def _what(model: SteerMoE, named: Mapping[str, str], merged: Merged | None) -> str:
    trained = sum(p.numel() for group in model.parameter_groups().values() for p in group)
    method = model.config.method
    if merged is None:
        return ADAPTER.format(**named, trained=trained, method=method)
    folded = FOLDED.format(trained_as=merged.method) if merged.method != method else UNTOUCHED
    return MERGED.format(**named, trained=trained, method=method, folded=folded)


def _table(corpus: str, result: "Result") -> str:
    if result.skipped is not None:
        return f"### {corpus}\n\nNot evaluated: {result.skipped}"
    protocol = result.summary["protocol"]
    rows = ["| split | task | metric | value | interval | n |", "|---|---|---|--:|--:|--:|"]
    for split, tasks in result.summary["own"].items():
        for task, figures in tasks.items():
            rows += [_row(split, task, metric, f) for metric, f in figures.items() if isinstance(f, Mapping)]
    return "\n\n".join([
        f"### {corpus}",
        "\n".join(rows),
        f"In %; normaliser `{protocol['normalizer']}`; decoding: {protocol['decoding']}; intervals: "
        f"{protocol['interval']}, {protocol['bootstrap_samples']} resamples, seed {protocol['seed']}.",
    ])  # fmt: skip


def _row(split: str, task: str, metric: str, figure: Mapping[str, Any]) -> str:
    value, low, high = (f"{100 * figure[key]:.1f}" for key in ("value", "low", "high"))
    return f"| {split} | {task} | {metric} | {value} | [{low}, {high}] | {figure['n']} |"
