"""Which variant is registered as the best: the one with the lowest dev loss. Test sets are for the report alone."""

import hashlib
from collections.abc import Mapping

from steermoe.analysis.comparison import Comparison
from steermoe.config import VariantConfig


def dev_losses(compared: Comparison, variants: Mapping[str, VariantConfig]) -> dict[str, float]:
    """The dev loss of the weights that each variant's training kept, lowest first.

    Of the variants that train something and are judged as the reference is: by the same dev splits, LLM and prompts. The
    losses of others do not compare.
    """
    wanted = judged_by(variants[compared.reference])
    found = {
        variant: timing["best_dev_loss"]
        for variant, timing in compared.timing.items()
        if judged_by(variants[variant]) == wanted and any(timing["trainable_parameters"].values())
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def judged_by(variant: VariantConfig) -> str:
    """What a variant's dev loss is measured by, in a line: losses with the same line compare."""
    splits = ", ".join(f"{corpus}/{name}" for corpus, names in variant.dev_splits.items() for name in names)
    asked = hashlib.sha256((variant.llm.model_dump_json() + variant.prompts.model_dump_json()).encode())
    return f"dev loss on {splits}, LLM and prompts {asked.hexdigest()[:12]}"


def table(losses: Mapping[str, float]) -> str:
    """The losses as Markdown."""
    lines = ["| variant | dev loss |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {variant} | {loss:.4f} |" for variant, loss in losses.items())])
