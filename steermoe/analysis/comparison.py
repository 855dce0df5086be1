"""The comparison of all systems as data: what the report, its pictures and metrics.json are made of.

Reads what evaluation wrote (layout: steermoe/evaluation/predictions.py) and training's <timing>/<variant>.json, and
computes nothing anew but paired differences against the reference variant.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import polars as pl

from steermoe.config import Evaluation
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
    """Rows that are scored together. A corpus that was not to be had is one set without split and task.

    `clusters` and `unit`: how many of what its bootstrap draws from.
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
    """One line of the tables. `real_time_factor`: wall seconds for a second of audio, over all corpora."""

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

    `against`: this variant minus the reference variant on the same rows, its p-value corrected for all of the comparison's;
    None for the reference itself.
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
    """Everything the report tells of accuracy and cost. `missing` maps a skipped corpus to the reason."""

    variants: list[str]
    reference: str
    rows: list[Row]
    sets: list[Set]
    cells: list[Cell]
    protocol: dict
    speeds: dict[str, dict]
    timing: dict[str, dict]
    missing: dict[str, str]

    def cell(self, row: Row, place: Set, metric: str) -> Cell | None:
        """The one cell of this row, set and metric, or None where it was not measured."""
        wanted = (row.system, row.audio, place.corpus, place.split, place.task, metric)
        for cell in self.cells:
            if (cell.system, cell.audio, cell.corpus, cell.split, cell.task, cell.metric) == wanted:
                return cell
        return None

    @property
    def tests(self) -> int:
        """How many p-values there are, for which each is corrected."""
        return sum(cell.against is not None for cell in self.cells)

    @cached_property
    def _most(self) -> dict[tuple[str, ...], int]:
        return {cell.scored: cell.n for cell in sorted(self.cells, key=lambda cell: cell.n)}

    def is_partial(self, cell: Cell) -> bool:
        """Whether a cell is over fewer rows of its set than another system's."""
        return cell.n < self._most[cell.scored]

    def own_metric(self, place: Set) -> str | None:
        """The metric that a set is reported in; None for a missing one.

        Of those that were measured on it, the one that the corpus' card begins with (AISHELL: CER), else the first
        of METRICS (WER; CER where words are not told apart by spaces; accuracy for questions).
        """
        where, card = (place.corpus, place.split, place.task), reader(place.corpus).CARD.metric
        found = {cell.metric for cell in self.cells if (cell.corpus, cell.split, cell.task) == where}
        first = [name for name, metric in METRICS.items() if card.startswith(metric.title)]
        return next((name for name in (*first, *METRICS) if name in found), None)

    def sets_of(self, task: str) -> list[Set]:
        """The sets with this task; for transcribe also the corpora that are missing, to be shown as such."""
        return [place for place in self.sets if place.task in (task, "" if task == "transcribe" else task)]

    def to_json(self) -> dict:
        """Plain values; rates as fractions."""
        return asdict(self)

    def headline(self) -> dict:
        """{system: {corpus: {split: {metric: own-audio value}}}} for `dvc metrics show`; `n` where partial."""
        tree: dict = {}
        for cell in self.cells:
            if cell.audio == "own":
                branch = (
                    tree.setdefault(cell.system, {}).setdefault(cell.corpus, {}).setdefault(cell.split, {})
                )
                branch[cell.metric] = round(cell.value, 6)
                if self.is_partial(cell):
                    branch["n"] = cell.n
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
    """Gather `variants` (in this order), the baselines and the controls on `corpora`.

    ValueError where a variant was not evaluated on a corpus that another was, or on other utterances.
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
    shown = {name: results[name] for name in (*variants, *(b for b in BASELINES if b in results))}
    shown = {name: {c: r for c, r in of.items() if c in corpora} for name, of in shown.items()}
    missing = {c: r.skipped for c, r in shown[reference].items() if r.skipped is not None}
    times = {
        variant: read_json(path) for variant in variants if (path := timing / f"{variant}.json").exists()
    }
    rows = table_rows(list(variants), shown, times)
    return Comparison(
        variants=list(variants),
        reference=reference,
        rows=rows,
        sets=table_sets(corpora, shown, missing),
        cells=corrected([cell for row in rows for cell in cells_of(row, shown, reference, settings, seed)]),
        protocol=protocol(shown[reference]),
        speeds={variant: speeds for variant in variants if (speeds := speed_of(shown[variant]))},
        timing=times,
        missing=missing,
    )


def table_rows(variants: list[str], shown: dict[str, dict[str, Result]], times: dict[str, dict]) -> list[Row]:
    """The encoder alone first, then the variants, then all that must be worse than they."""

    def baseline(name: str, kind: str) -> list[Row]:
        summaries = [result.summary for result in shown.get(name, {}).values() if result.summary]
        decoding = "; ".join(sorted({summary["protocol"]["decoding"] for summary in summaries}))
        return [Row(name, "own", BASELINES[name], kind, decoding=decoding)] if summaries else []

    rows = baseline("baseline/encoder", "decoder")
    for variant in variants:
        time, speed = times.get(variant, {}), speed_of(shown[variant])
        parts = time.get("trainable_parameters")
        count = None if parts is None else sum(parts.values())
        rows.append(
            Row(
                variant,
                "own",
                variant,
                "variant",
                count,
                time.get("seconds_per_step"),
                speed.get("real_time_factor"),
            )
        )
    for variant in variants:
        for kind, words in CONTROLS.items():
            if any(kind in result.summary for result in shown[variant].values()):
                rows.append(Row(variant, kind, f"{variant}, {words}", "control"))
    return [*rows, *baseline("baseline/text-only", "floor"), *baseline("baseline/constant", "floor")]


def table_sets(
    corpora: Sequence[str], shown: dict[str, dict[str, Result]], missing: dict[str, str]
) -> list[Set]:
    """Every set that some system was scored on, in the order of `corpora`; a missing corpus is one set."""
    sets: dict[tuple[str, str, str], Set] = {}
    for corpus in corpora:
        if corpus in missing:
            sets[corpus, "", ""] = Set(corpus)
        for of in shown.values():
            for split, task, scores in scored(of[corpus], "own") if corpus in of else ():
                place = Set(corpus, split, task, scores["n"], scores["clusters"], scores["unit"])
                sets.setdefault((corpus, split, task), place)
    return list(sets.values())


def cells_of(
    row: Row, shown: dict[str, dict[str, Result]], reference: str, settings: Evaluation, seed: int
) -> list[Cell]:
    """All metrics of a row of the table, variants with their difference from the reference."""
    cells = []
    for corpus, result in shown[row.system].items():
        for split, task, scores in scored(result, row.audio):
            place = Set(corpus, split, task, scores["n"])
            for metric in metrics_of(task):
                if metric not in scores:  # it says nothing about these rows
                    continue
                against = None
                if row.kind == "variant" and row.system != reference:
                    draws = [seed, zlib.crc32(f"{row.system} {corpus} {split} {task} {metric}".encode())]
                    against = difference(result, shown[reference][corpus], place, metric, settings, draws)
                found = (scores[metric][bound] for bound in ("value", "low", "high"))
                where = (row.system, row.audio, corpus, split, task, metric)
                cells.append(Cell(*where, scores[metric]["n"], *found, against=against))
    return cells


def corrected(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with the p-values of all their differences corrected together."""
    tested = [cell.against for cell in cells if cell.against is not None]
    values = iter(holm([against.p for against in tested]))
    return [
        cell if cell.against is None else replace(cell, against=replace(cell.against, corrected=next(values)))
        for cell in cells
    ]


def scored(result: Result, audio: str) -> Iterator[tuple[str, str, dict]]:
    """Split, task and scores of everything in a result's summary."""
    for split, tasks in result.summary.get(audio, {}).items():
        for task, scores in tasks.items():
            yield split, task, scores


def difference(
    result: Result, reference: Result, place: Set, metric: str, settings: Evaluation, seed: Sequence[int]
) -> Difference:
    """Paired bootstrap of two variants on one set; ValueError where they were evaluated on other utterances."""
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


def protocol(results: dict[str, Result]) -> dict:
    """How the variants were scored: the same for all, but for the normaliser that a corpus may have of its own."""
    found = {corpus: r.summary["protocol"] for corpus, r in results.items() if r.summary}
    names = list(dict.fromkeys(each["normalizer"] for each in found.values()))
    if len(names) < 2:
        return next(iter(found.values()), {})
    of = {name: [c for c, each in found.items() if each["normalizer"] == name] for name in names}
    words = ", ".join(f"{name} ({', '.join(corpora)})" for name, corpora in of.items())
    return next(iter(found.values())) | {"normalizer": words}


def speed_of(results: dict[str, Result]) -> dict:
    """Real-time factor over all corpora of one variant, with what it was measured on."""
    speeds = [r.summary["speed"] for r in results.values() if r.summary and r.summary["speed"]]
    if not speeds:
        return {}
    wall, audio = (sum(speed[name] for speed in speeds) for name in ("wall_seconds", "audio_seconds"))
    return {**speeds[0], "wall_seconds": wall, "audio_seconds": audio, "real_time_factor": wall / audio}


def worst(result: Result, split: str, task: str, count: int) -> pl.DataFrame:
    """The utterances with the most errors of one set, own audio; ties by source_id."""
    rows = result.frame.filter(~pl.col("exact"), audio="own", split=split, task=task)
    return rows.sort(["errors", "source_id"], descending=[True, False]).head(count)
