"""Compare all systems: the data of the report, its plots and metrics.json.

Read what evaluation wrote (layout: steermoe/evaluation/predictions.py) and training's <timing>/<variant>.json.
Variants that differ by their seed only are one configuration: their mean is a row of its own, and p-values compare
configurations. Only these means and the paired differences from the reference are computed here.
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steermoe.config import Evaluation, VariantConfig
from steermoe.corpora import reader
from steermoe.evaluation.metrics import METRICS, Counts, metrics_of
from steermoe.evaluation.predictions import Result, clusters, read_json, read_results
from steermoe.evaluation.significance import Difference, bootstrap_interval, holm, paired_bootstrap

BASELINES = {  # system of the baseline stage -> its kind, and its name in tables
    "baseline/encoder": ("decoder", "encoder's own decoder"),
    "baseline/cascade": ("decoder", "cascade (decoder, then LLM)"),
    "baseline/text-only": ("floor", "LLM without audio"),
    "baseline/constant": ("floor", "constant text"),
}
CONTROLS = {  # rows of evaluation.baselines -> their names in tables
    "shuffled": "shuffled audio",
    "silent": "silence and its video",
    "blank": "black video",
}
Results = Mapping[str, Mapping[str, Result]]  # by system and corpus


@dataclass(frozen=True)
class Set:
    """Rows that are scored together: those of a split with the same task.

    Attributes:
        metric: that it is reported in: of those measured the one that the corpus' card begins with (AISHELL: CER),
            else the first.
        clusters, unit: what the bootstrap draws from, and their kind.
        language: the BCP 47 tag of all rows; "" if they differ.
    """

    corpus: str
    split: str
    task: str
    metric: str
    n: int
    clusters: int
    unit: str
    language: str

    @property
    def title(self) -> str:
        """Its name in tables, with its metric."""
        return f"{self.corpus} {self.split} {METRICS[self.metric].title}"


@dataclass(frozen=True)
class Row:
    """One line of the tables.

    Attributes:
        kind: variant, seeds (a mean of variants), decoder (uses the encoder's own), control (the first
            run of a configuration with other audio) or floor (never listens).
        real_time_factor: wall seconds per second of audio, over all corpora.
        cut: answers that reached `generation.max_new_tokens`, over all sets.
    """

    system: str
    audio: str
    title: str
    kind: str
    trainable: int | None = None
    seconds_per_step: float | None = None
    real_time_factor: float | None = None
    cut: int | None = None
    decoding: str = ""


@dataclass(frozen=True)
class Cell:
    """A metric of a system on a set, as a fraction with its interval.

    Attributes:
        seeds: the value of each run, where `value` is their mean.
        against: the configuration minus the reference on the same rows, in the metric of the set; None for others.
    """

    system: str
    audio: str
    place: Set
    metric: str
    n: int
    value: float
    low: float
    high: float
    seeds: tuple[float, ...] = ()
    against: Difference | None = None

    @property
    def key(self) -> tuple[str, str, Set, str]:
        """What no other cell has."""
        return self.system, self.audio, self.place, self.metric


@dataclass(frozen=True)
class Comparison:
    """Accuracy and cost of all systems.

    Attributes:
        seeds: the runs of each row that is a mean.
        timing: of training, by variant.
        speed: how the real-time factors were measured.
        missing: the reason why a corpus was skipped.
    """

    reference: str
    seeds: dict[str, list[str]]
    rows: list[Row]
    sets: list[Set]
    cells: list[Cell]
    protocol: dict
    speed: dict
    timing: dict[str, dict]
    missing: dict[str, str]

    @cached_property
    def _index(self) -> dict[tuple[str, str, Set, str], Cell]:
        return {cell.key: cell for cell in self.cells}

    def cell(self, row: Row, place: Set, metric: str) -> Cell | None:
        """Return the cell of a row, set and metric; None where it was not measured."""
        return self._index.get((row.system, row.audio, place, metric))

    @cached_property
    def _most(self) -> dict[tuple[Set, str], int]:
        return {(cell.place, cell.metric): cell.n for cell in sorted(self.cells, key=lambda cell: cell.n)}

    def is_partial(self, cell: Cell) -> bool:
        """Return whether another system was scored on more rows of the set."""
        return cell.n < self._most[cell.place, cell.metric]

    def by_language(self) -> dict[str, list[Set]]:
        """Return the sets to transcribe of each corpus that has them in several languages."""
        found: dict[str, list[Set]] = {}
        for place in (place for place in self.sets if place.task == "transcribe" and place.language):
            found.setdefault(place.corpus, []).append(place)
        return {corpus: sets for corpus, sets in found.items() if len({each.language for each in sets}) > 1}

    def main_sets(self) -> list[Set]:
        """Return the sets of the main table: of `by_language` only those in the most frequent language of all sets."""
        counts = Counter(place.language for place in self.sets if place.language)
        apart = {place for sets in self.by_language().values() for place in sets}
        return [p for p in self.sets if p not in apart or p.language == counts.most_common(1)[0][0]]

    def headline(self) -> dict:
        """Return {system: {corpus: {split: {metric: value}}}} for `dvc metrics show`, with `n` where partial."""
        tree: dict = {}
        for cell in self.cells:
            if cell.audio == "own":
                corpora, place = tree.setdefault(cell.system, {}), cell.place
                values = corpora.setdefault(place.corpus, {}).setdefault(place.split, {})
                values[cell.metric] = round(cell.value, 6)
                if self.is_partial(cell):
                    values["n"] = cell.n
        return tree


def compare(
    variants: Mapping[str, VariantConfig],
    reference: str,
    corpora: Sequence[str],
    evaluations: Path,
    timing: Path,
    settings: Evaluation,
    seed: int,
) -> Comparison:
    """Compare variants (in their order), the baselines and the controls on `corpora`.

    Raises:
        ValueError: a variant was not evaluated on a corpus that another was, or on other utterances.
    """
    if reference not in variants:
        raise ValueError(
            f"reference variant {reference!r} is not among the compared variants: {', '.join(variants)}"
        )
    results = read_results(evaluations)
    for variant in variants:
        for corpus in corpora:
            if corpus not in results.get(variant, {}):
                raise ValueError(
                    f"{evaluations}: variant {variant!r} lacks evaluations of {corpus}; run `dvc repro`"
                )
            if results[variant][corpus].skipped != results[reference][corpus].skipped:
                raise ValueError(
                    f"{evaluations}: {corpus} was skipped for one of {variant}, {reference}; repeat `eval`"
                )
    systems = [*variants, *(baseline for baseline in BASELINES if baseline in results)]
    shown = {name: {c: r for c, r in results[name].items() if c in corpora} for name in systems}
    missing = {c: r.skipped for c, r in shown[reference].items() if r.skipped is not None}
    files = {variant: timing / f"{variant}.json" for variant in variants}
    times = {variant: read_json(path) for variant, path in files.items() if path.exists()}
    runs = configurations(variants)
    rows, sets = table_rows(runs, shown, times), table_sets(corpora, shown)
    cells = {cell.key: cell for row in rows for cell in measured(row, sets, shown)}
    cells |= {cell.key: cell for cell in compared(runs, reference, shown, settings, seed, cells)}
    tested = {key: cell.against for key, cell in cells.items() if cell.against is not None}
    for (key, against), p in zip(tested.items(), holm([each.p for each in tested.values()]), strict=True):
        cells[key] = replace(cells[key], against=replace(against, corrected=p))
    return Comparison(
        reference=reference,
        seeds={name: runs[name] for name in runs if len(runs[name]) > 1},
        rows=rows,
        sets=sets,
        cells=list(cells.values()),
        protocol=protocol(shown[reference]),
        speed=speed_of(shown[reference]),
        timing=times,
        missing=missing,
    )


def configurations(variants: Mapping[str, VariantConfig]) -> dict[str, list[str]]:
    """Return the row of each configuration with its runs, variants that are equal except for name and seed.

    A row is named as its run, or `seeds/<first run>` where there are several.
    """
    same: dict[str, list[str]] = {}
    for name, variant in variants.items():
        same.setdefault(variant.model_copy(update={"name": "", "seed": 0}).to_json(), []).append(name)
    return {runs[0] if len(runs) == 1 else f"seeds/{runs[0]}": runs for runs in same.values()}


def table_rows(runs: Mapping[str, list[str]], shown: Results, times: Mapping[str, dict]) -> list[Row]:
    """Return what decodes with the encoder's own decoder first, then the variants, then what must be worse."""

    def baselines(kind: str) -> Iterator[Row]:
        for name, (own_kind, title) in BASELINES.items():
            summaries = [result.summary for result in shown.get(name, {}).values() if result.summary]
            decoding = "; ".join(sorted({summary["protocol"]["decoding"] for summary in summaries}))
            if summaries and own_kind == kind:
                yield Row(name, "own", title, kind, decoding=decoding)

    rows, controls = [*baselines("decoder")], list[Row]()
    for configuration, members in runs.items():
        parts = times.get(members[0], {}).get("trainable_parameters")
        count = None if parts is None else sum(parts.values())
        if len(members) > 1:
            rows.append(
                Row(configuration, "own", f"{members[0]}, mean of {len(members)} seeds", "seeds", count)
            )
        for name in members:
            step, speed = times.get(name, {}).get("seconds_per_step"), speed_of(shown[name])
            costs = count, step, speed.get("real_time_factor"), cut_of(shown[name])
            rows.append(Row(name, "own", name, "variant", *costs))
        controls += [
            Row(members[0], kind, f"{members[0]}, {words}", "control")
            for kind, words in CONTROLS.items()
            if any(kind in result.summary for result in shown[members[0]].values())
        ]
    return [*rows, *controls, *baselines("floor")]


def table_sets(corpora: Sequence[str], shown: Results) -> list[Set]:
    """Return every set that a system was scored on, in the order of `corpora`; those to transcribe come first."""
    sets: dict[tuple[str, str, str], Set] = {}
    for corpus in corpora:
        card = reader(corpus).CARD.metric
        for results in shown.values():
            for split, task, scores in scored(results[corpus], "own") if corpus in results else ():
                names = [name for name in metrics_of(task) if name in scores]
                metric = next((name for name in names if card.startswith(METRICS[name].title)), names[0])
                size, languages = (scores["n"], scores["clusters"], scores["unit"]), scores["languages"]
                language = languages[0] if len(languages) == 1 else ""
                sets.setdefault((corpus, split, task), Set(corpus, split, task, metric, *size, language))
    tasks = list(dict.fromkeys(["transcribe", *(task for _, _, task in sets)]))
    return sorted(sets.values(), key=lambda place: tasks.index(place.task))


def measured(row: Row, sets: Sequence[Set], shown: Results) -> Iterator[Cell]:
    """Yield all metrics of a row of the table, as evaluation wrote them; none of a mean of seeds."""
    results = shown.get(row.system, {})
    for place in (place for place in sets if place.corpus in results):
        splits = results[place.corpus].summary.get(row.audio, {})
        scores = splits.get(place.split, {}).get(place.task, {})
        for metric in (metric for metric in metrics_of(place.task) if metric in scores):
            found = (scores[metric][name] for name in ("n", "value", "low", "high"))
            yield Cell(row.system, row.audio, place, metric, *found)


def compared(
    runs: Mapping[str, list[str]],
    reference: str,
    shown: Results,
    settings: Evaluation,
    seed: int,
    cells: Mapping[Any, Cell],
) -> Iterator[Cell]:
    """Yield the means over seeds, and the configurations with their difference from that of the reference.

    Differences are in the metric of each set, and each has draws of its own. `cells` are those of single runs, by key.
    """
    base = next(members for members in runs.values() if reference in members)
    how = settings.bootstrap_samples, settings.confidence
    for row, members in runs.items():
        for cell in [cell for cell in cells.values() if (cell.system, cell.audio) == (members[0], "own")]:
            place, metric = cell.place, cell.metric
            is_tested = reference not in members and metric == place.metric
            if len(members) == 1 and not is_tested:
                continue
            frames = same_rows([shown[name][place.corpus] for name in (*members, *base)], place)
            ours, theirs = summed(frames[: len(members)], metric), summed(frames[len(members) :], metric)
            named = f"{row} {place.corpus} {place.split} {place.task} {metric}"
            draws = [seed, zlib.crc32(named.encode())]
            names = clusters(frames[0], settings.bootstrap_unit)[1]
            if len(members) > 1:
                values = tuple(cells[name, "own", place, metric].value for name in members)
                interval = bootstrap_interval(ours, *how, draws, names)
                cell = replace(cell, system=row, seeds=values, **asdict(interval))
            against = paired_bootstrap(ours, theirs, *how, draws, names) if is_tested else None
            yield replace(cell, against=against)


def same_rows(results: Sequence[Result], place: Set) -> list[pl.DataFrame]:
    """Return what variants answered on one set; ValueError if they were evaluated on different utterances."""
    chosen = {"audio": "own", "split": place.split, "task": place.task}
    frames = [result.frame.filter(**chosen).sort("source_id") for result in results]
    for frame in frames:
        if not frame["source_id"].equals(frames[0]["source_id"]):
            raise ValueError(
                f"{place.title}: two variants were evaluated on different utterances "
                f"({len(frames[0])} and {len(frame)} rows); repeat `eval` for both"
            )
    return frames


def summed(frames: Sequence[pl.DataFrame], metric: str) -> Counts:
    """Return the counts of each row, summed over runs: their ratio is the mean of the runs' ratios."""
    numerators, denominators = zip(*map(METRICS[metric].counts, frames), strict=True)
    return np.sum(numerators, axis=0), np.sum(denominators, axis=0)


def scored(result: Result, audio: str) -> Iterator[tuple[str, str, dict]]:
    """Yield split, task and scores of everything in a result's summary."""
    for split, tasks in result.summary.get(audio, {}).items():
        for task, scores in tasks.items():
            yield split, task, scores


def protocol(results: Mapping[str, Result]) -> dict:
    """Return how the variants were scored; only the normaliser can differ between corpora."""
    found = [r.summary["protocol"] for r in results.values() if r.summary]
    names = ", ".join(dict.fromkeys(each["normalizer"] for each in found))
    return found[0] | {"normalizer": names} if found else {}


def cut_of(results: Mapping[str, Result]) -> int:
    """Return how many answers of a variant were cut at the limit of tokens, over all corpora."""
    return sum(
        int(result.frame.filter(audio="own")["cut"].sum()) for result in results.values() if result.summary
    )


def speed_of(results: Mapping[str, Result]) -> dict:
    """Return the real-time factor over all corpora of a variant, with what it was measured on."""
    speeds = [r.summary["speed"] for r in results.values() if r.summary and r.summary["speed"]]
    if not speeds:
        return {}
    wall, audio = (sum(speed[name] for speed in speeds) for name in ("wall_seconds", "audio_seconds"))
    return {**speeds[0], "wall_seconds": wall, "audio_seconds": audio, "real_time_factor": wall / audio}


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
