"""Which arm wins a comparison: the one with the lowest error, meaned over the test sets."""

import math

from steermoe.analysis.comparison import Comparison, Row
from steermoe.evaluation.metrics import metrics_of


def headline_errors(compared: Comparison) -> dict[str, float]:
    """The headline error of every arm that trained something, lowest first; controls and baselines have none.

    It is the mean over the test sets of the task's first metric that the set has (WER, or CER where a language has
    no words; of questions 1 - accuracy), each set counting the same.

    Returns:
        {} where nothing was scored.
    """
    rows = [row for row in compared.rows if row.kind == "arm" and row.trainable != 0]
    found = {row.system: _errors(compared, row) for row in rows}
    means = {arm: math.fsum(errors) / len(errors) for arm, errors in found.items() if errors}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def measured_on(compared: Comparison) -> str:
    """Test sets and protocol in a line: errors with the same line compare."""
    sets = [f"{place.corpus}/{place.split}/{place.task}:{place.n}" for place in compared.sets if place.task]
    protocol = compared.protocol
    return " ".join([*sets, *(str(protocol.get(name)) for name in ("normalizer", "decoding"))])


def table(errors: dict[str, float]) -> str:
    """The errors as Markdown."""
    lines = ["| arm | headline error |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {arm} | {error:.2%} |" for arm, error in errors.items())])


def _errors(compared: Comparison, row: Row) -> list[float]:
    errors = []
    for place in compared.sets:
        if not place.task:  # a corpus that was not to be had
            continue
        for name, metric in metrics_of(place.task).items():
            cell = compared.cell(row, place, name)
            if cell is not None:
                errors.append(cell.value if metric.lower_is_better else 1 - cell.value)
                break
    return errors
