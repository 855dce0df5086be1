"""Compare all systems: the data of the report, its plots and metrics.json.

Read what evaluation wrote (layout: steermoe/evaluation/predictions.py) and training's <timing>/<variant>.json. Only
the paired differences from the reference variant are computed here.
"""

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import polars as pl

from steermoe.config import Evaluation, VariantConfig
from steermoe.corpora import reader
from steermoe.evaluation.metrics import METRICS, metrics_of
from steermoe.evaluation.predictions import Result, clusters, read_json, read_results
from steermoe.evaluation.significance import Difference, holm, paired_bootstrap

BASELINES = {  # system of the baseline stage -> its name in tables
    "baseline/encoder": "encoder's own decoder",
    "baseline/text-only": "LLM without audio",
    "baseline/constant": "constant text",
}
CONTROLS = {  # rows of evaluation.baselines -> their names in tables
    "shuffled": "shuffled audio",
    "silent": "silence and its video",
    "blank": "black video",
}


@dataclass(frozen=True)
class Set:
    """Rows that are scored together; a missing corpus is one set without split and task.

    The bootstrap draws from `clusters` many of `unit`.
    """

    corpus: str
    split: str = ""
    task: str = ""
    n: int = 0
    clusters: int = 0
    unit: str = ""

    @property
    def title(self) -> str:
        """Its name in tables."""
        return f"{self.corpus} {self.split}".strip()


@dataclass(frozen=True)
class Row:
    """One line of the tables. `real_time_factor`: wall seconds per second of audio, over all corpora."""

    system: str
    audio: str
    title: str
    kind: str  # variant | decoder (the encoder's own) | control (shuffled audio) | floor (never listens)
    trainable: int | None = None
    seconds_per_step: float | None = None
    real_time_factor: float | None = None
    decoding: str = ""


@dataclass(frozen=True)
class Cell:
    """A metric of a system on a set, as a fraction with its interval.

    `against`: this variant minus the reference variant on the same rows; None for the reference and other systems.
    """

    system: str
    audio: str
    corpus: str
    split: str
    task: str
    metric: str
    n: int
    value: float
    low: float
    high: float
    against: Difference | None = None

    @property
    def scored(self) -> tuple[str, ...]:
        """Set and metric."""
        return self.corpus, self.split, self.task, self.metric


@dataclass(frozen=True)
class Comparison:
    """Accuracy and cost of all systems. `missing` maps a skipped corpus to the reason."""

    variants: list[str]
    reference: str
    rows: list[Row]
    sets: list[Set]
    cells: list[Cell]
    protocol: dict
    speeds: dict[str, dict]
    timing: dict[str, dict]
    missing: dict[str, str]

    @cached_property
    def _index(self) -> dict[tuple[str, ...], Cell]:
        return {(cell.system, cell.audio, *cell.scored): cell for cell in self.cells}

    def cell(self, row: Row, place: Set, metric: str) -> Cell | None:
        """Return the cell of a row, set and metric; None where it was not measured."""
        return self._index.get((row.system, row.audio, place.corpus, place.split, place.task, metric))

    @property
    def tests(self) -> int:
        """The number of p-values, for which each is corrected."""
        return sum(cell.against is not None for cell in self.cells)

    @cached_property
    def _most(self) -> dict[tuple[str, ...], int]:
        return {cell.scored: cell.n for cell in sorted(self.cells, key=lambda cell: cell.n)}

    def is_partial(self, cell: Cell) -> bool:
        """Return whether another system was scored on more rows of the set."""
        return cell.n < self._most[cell.scored]

    def own_metric(self, place: Set) -> str | None:
        """Return the metric that a set is reported in; None for a missing corpus.

        Of the metrics measured on it, the one that the corpus' card begins with (AISHELL: CER), else the first.
        """
        card = reader(place.corpus).CARD.metric
        found = {c.metric for c in self.cells if c.scored[:3] == (place.corpus, place.split, place.task)}
        first = [name for name, metric in METRICS.items() if card.startswith(metric.title)]
        return next((name for name in (*first, *METRICS) if name in found), None)

    def sets_of(self, task: str) -> list[Set]:
        """Return the sets with a task; for transcribe also the missing corpora."""
        return [place for place in self.sets if place.task in (task, "" if task == "transcribe" else task)]

    def to_json(self) -> dict:
        """Return plain values; rates are fractions."""
        return asdict(self)

    def headline(self) -> dict:
        """Return {system: {corpus: {split: {metric: value}}}} for `dvc metrics show`, with `n` where partial."""
        tree: dict = {}
        for cell in self.cells:
            if cell.audio == "own":
                corpora = tree.setdefault(cell.system, {})
                values = corpora.setdefault(cell.corpus, {}).setdefault(cell.split, {})
                values[cell.metric] = round(cell.value, 6)
                if self.is_partial(cell):
                    values["n"] = cell.n
        return tree


def compare(
    variants: Sequence[str],
    reference: str,
    corpora: Sequence[str],
    evaluations: Path,
    timing: Path,
    settings: Evaluation,
    seed: int,
) -> Comparison:
    """Compare `variants` (in this order), the baselines and the controls on `corpora`.

    Raises:
        ValueError: a variant was not evaluated on a corpus that another was, or on other utterances.
    """
    if reference not in variants:
        raise ValueError(
            f"reference variant {reference!r} is not among the compared variants: {', '.join(variants)}"
        )
    results = read_results(evaluations)
    for variant in variants:
        if lacking := [corpus for corpus in corpora if corpus not in results.get(variant, {})]:
            raise ValueError(
                f"{evaluations}: variant {variant!r} lacks evaluations of {', '.join(lacking)}; run `dvc repro`"
            )
        for corpus in corpora:
            if results[variant][corpus].skipped != results[reference][corpus].skipped:
                raise ValueError(
                    f"{evaluations}: {corpus} was skipped for one of {variant}, {reference}; repeat `eval`"
                )
    systems = [*variants, *(baseline for baseline in BASELINES if baseline in results)]
    shown = {name: {c: r for c, r in results[name].items() if c in corpora} for name in systems}
    missing = {c: r.skipped for c, r in shown[reference].items() if r.skipped is not None}
    files = {variant: timing / f"{variant}.json" for variant in variants}
    times = {variant: read_json(path) for variant, path in files.items() if path.exists()}
    rows = table_rows(list(variants), shown, times)
    cells = [cell for row in rows for cell in cells_of(row, shown, reference, settings, seed)]
    return Comparison(
        variants=list(variants),
        reference=reference,
        rows=rows,
        sets=table_sets(corpora, shown, missing),
        cells=corrected(cells),
        protocol=protocol(shown[reference]),
        speeds={variant: speed for variant in variants if (speed := speed_of(shown[variant]))},
        timing=times,
        missing=missing,
    )


def table_rows(
    variants: list[str], shown: Mapping[str, Mapping[str, Result]], times: Mapping[str, dict]
) -> list[Row]:
    """Return the encoder alone first, then the variants, then everything that must be worse."""

    def baseline(name: str, kind: str) -> list[Row]:
        summaries = [result.summary for result in shown.get(name, {}).values() if result.summary]
        decoding = "; ".join(sorted({summary["protocol"]["decoding"] for summary in summaries}))
        return [Row(name, "own", BASELINES[name], kind, decoding=decoding)] if summaries else []

    rows = baseline("baseline/encoder", "decoder")
    for variant in variants:
        time, speed = times.get(variant, {}), speed_of(shown[variant])
        parts = time.get("trainable_parameters")
        count = None if parts is None else sum(parts.values())
        costs = count, time.get("seconds_per_step"), speed.get("real_time_factor")
        rows.append(Row(variant, "own", variant, "variant", *costs))
    for variant in variants:
        for kind, words in CONTROLS.items():
            if any(kind in result.summary for result in shown[variant].values()):
                rows.append(Row(variant, kind, f"{variant}, {words}", "control"))
    return [*rows, *baseline("baseline/text-only", "floor"), *baseline("baseline/constant", "floor")]


def table_sets(
    corpora: Sequence[str], shown: Mapping[str, Mapping[str, Result]], missing: Mapping[str, str]
) -> list[Set]:
    """Return every set that a system was scored on, in the order of `corpora`; a missing corpus is one set."""
    sets: dict[tuple[str, str, str], Set] = {}
    for corpus in corpora:
        if corpus in missing:
            sets[corpus, "", ""] = Set(corpus)
        for results in shown.values():
            for split, task, scores in scored(results[corpus], "own") if corpus in results else ():
                place = Set(corpus, split, task, scores["n"], scores["clusters"], scores["unit"])
                sets.setdefault((corpus, split, task), place)
    return list(sets.values())


def cells_of(
    row: Row, shown: Mapping[str, Mapping[str, Result]], reference: str, settings: Evaluation, seed: int
) -> list[Cell]:
    """Return all metrics of a row of the table; variants with their difference from the reference."""
    cells = []
    for corpus, result in shown[row.system].items():
        for split, task, scores in scored(result, row.audio):
            for metric in (metric for metric in metrics_of(task) if metric in scores):
                against = None
                if row.kind == "variant" and row.system != reference:
                    draws = [seed, zlib.crc32(f"{row.system} {corpus} {split} {task} {metric}".encode())]
                    place, other = Set(corpus, split, task, scores["n"]), shown[reference][corpus]
                    against = difference(result, other, place, metric, settings, draws)
                found = (scores[metric][name] for name in ("n", "value", "low", "high"))
                cells.append(
                    Cell(row.system, row.audio, corpus, split, task, metric, *found, against=against)
                )
    return cells


def corrected(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells with the p-values of all differences corrected together."""
    tested = [cell.against for cell in cells if cell.against is not None]
    values = iter(holm([against.p for against in tested]))
    return [
        cell if cell.against is None else replace(cell, against=replace(cell.against, corrected=next(values)))
        for cell in cells
    ]


def scored(result: Result, audio: str) -> Iterator[tuple[str, str, dict]]:
    """Yield split, task and scores of everything in a result's summary."""
    for split, tasks in result.summary.get(audio, {}).items():
        for task, scores in tasks.items():
            yield split, task, scores


def difference(
    result: Result, reference: Result, place: Set, metric: str, settings: Evaluation, seed: Sequence[int]
) -> Difference:
    """Compare two variants on one set by a paired bootstrap; they must have been evaluated on the same utterances."""
    chosen = {"audio": "own", "split": place.split, "task": place.task}
    ours, theirs = (each.frame.filter(**chosen).sort("source_id") for each in (result, reference))
    if ours["source_id"].to_list() != theirs["source_id"].to_list():
        raise ValueError(
            f"{place.title}: two variants were evaluated on different utterances "
            f"({len(ours)} and {len(theirs)} rows); repeat `eval` for both"
        )
    counts = METRICS[metric].counts
    return paired_bootstrap(
        counts(ours), counts(theirs), settings.bootstrap_samples, settings.confidence, seed, clusters(ours)[1]
    )


def protocol(results: Mapping[str, Result]) -> dict:
    """Return how the variants were scored; only the normaliser can differ between corpora."""
    found = {corpus: r.summary["protocol"] for corpus, r in results.items() if r.summary}
    names = list(dict.fromkeys(each["normalizer"] for each in found.values()))
    if len(names) < 2:
        return next(iter(found.values()), {})
    of = {name: [c for c, each in found.items() if each["normalizer"] == name] for name in names}
    words = ", ".join(f"{name} ({', '.join(corpora)})" for name, corpora in of.items())
    return next(iter(found.values())) | {"normalizer": words}


def speed_of(results: Mapping[str, Result]) -> dict:
    """Return the real-time factor over all corpora of a variant, with what it was measured on."""
    speeds = [r.summary["speed"] for r in results.values() if r.summary and r.summary["speed"]]
    if not speeds:
        return {}
    wall, audio = (sum(speed[name] for speed in speeds) for name in ("wall_seconds", "audio_seconds"))
    return {**speeds[0], "wall_seconds": wall, "audio_seconds": audio, "real_time_factor": wall / audio}


def worst(result: Result, split: str, task: str, count: int) -> pl.DataFrame:
    """Return the utterances of a set with the most errors; ties by source_id."""
    rows = result.frame.filter(~pl.col("exact"), audio="own", split=split, task=task)
    return rows.sort(["errors", "source_id"], descending=[True, False]).head(count)


def dev_losses(compared: Comparison, variants: Mapping[str, VariantConfig]) -> dict[str, float]:
    """Return the dev loss of each variant's best weights, lowest first: it chooses the best model, not a test set.

    Only of variants that train something and whose losses compare with the reference's (`measured_on`).
    """
    wanted = measured_on(variants[compared.reference])
    found = {
        variant: timing["best_dev_loss"]
        for variant, timing in compared.timing.items()
        if measured_on(variants[variant]) == wanted and any(timing["trainable_parameters"].values())
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def measured_on(variant: VariantConfig) -> str:
    """Return the dev splits, LLM and prompts of a variant's dev loss in a line: losses with the same line compare."""
    splits = ", ".join(f"{corpus}/{name}" for corpus, names in variant.dev_splits.items() for name in names)
    asked = hashlib.sha256((variant.llm.model_dump_json() + variant.prompts.model_dump_json()).encode())
    return f"dev loss on {splits}, LLM and prompts {asked.hexdigest()[:12]}"
