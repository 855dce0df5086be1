"""Which arm is registered as the best: the one with the lowest dev loss. Test sets are for the report alone."""

import hashlib
from collections.abc import Mapping

from steermoe.analysis.comparison import Comparison
from steermoe.config import ArmConfig


def dev_losses(compared: Comparison, arms: Mapping[str, ArmConfig]) -> dict[str, float]:
    """The dev loss of the weights that each arm's training kept, lowest first.

    Of the arms that train something and are judged as the reference is: by the same dev splits, LLM and prompts. The
    losses of others do not compare.
    """
    wanted = judged_by(arms[compared.reference])
    found = {
        arm: timing["best_dev_loss"]
        for arm, timing in compared.timing.items()
        if judged_by(arms[arm]) == wanted and any(timing["trainable_parameters"].values())
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def judged_by(arm: ArmConfig) -> str:
    """What an arm's dev loss is measured by, in a line: losses with the same line compare."""
    splits = ", ".join(f"{corpus}/{name}" for corpus, names in arm.dev_splits.items() for name in names)
    asked = hashlib.sha256((arm.llm.model_dump_json() + arm.prompts.model_dump_json()).encode())
    return f"dev loss on {splits}, LLM and prompts {asked.hexdigest()[:12]}"


def table(losses: Mapping[str, float]) -> str:
    """The losses as Markdown."""
    lines = ["| arm | dev loss |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {arm} | {loss:.4f} |" for arm, loss in losses.items())])
