"""Turn one corpus into checked shards."""

import sys
from pathlib import Path

from pipeline.options import Out, Params, Source, Workers


def main(
    corpus: str, source: Source, out: Out, params: Params = Path("params.yaml"), workers: Workers = None
) -> None:
    """Turn CORPUS, fetched into SOURCE, into parquet shards in OUT.

    Rows of training and dev splits beyond the limits of PARAMS are dropped and counted; unusable rows are listed.
    A recording or speaker in both training and test splits is reported.
    """
    from steermoe import config, corpora
    from steermoe.data.filters import LEFT_OUT, Limits, tokenizer_file
    from steermoe.data.preprocess import overlap, preprocess
    from steermoe.hub import located

    loaded = config.load(params)
    settings, section = loaded.corpora[corpus], loaded.preprocessing
    limits = Limits(
        max_seconds=section.max_seconds,
        max_tokens=section.max_tokens,
        tokenizer=None if section.max_tokens is None else tokenizer_file(located(loaded.llm, "llm").path),
        whole=settings.test,
        max_rejected=section.max_rejected,
        unreadable=section.unreadable.get(corpus, []),
    )
    summary = preprocess(corpora.reader(corpus), settings, source, out, limits, workers)
    for split, found in summary.get("splits", {}).items():
        line = f"{corpus} {split}: {found['rows']} rows, {found['seconds'] / 60:.1f} minutes"
        if split not in limits.whole and (limits.max_seconds, limits.max_tokens) != (None, None):
            line += f"; {found['dropped']} dropped as too long"
        if found["rejected"]:
            line += f"; {found['rejected']} left out as unusable, see {LEFT_OUT}"
        print(line)
    if "splits" in summary and (shared := overlap(out, settings.train, settings.test)):
        print(f"WARNING {corpus}: {shared}", file=sys.stderr)
