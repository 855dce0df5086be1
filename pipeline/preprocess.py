"""Turn one corpus into checked shards."""

from pathlib import Path

from pipeline.options import Out, Params, Source, Workers


def main(
    corpus: str, source: Source, out: Out, params: Params = Path("params.yaml"), workers: Workers = None
) -> None:
    """Turn CORPUS, fetched into SOURCE, into parquet shards in OUT."""
    from steermoe import config, corpora
    from steermoe.data.preprocess import preprocess

    settings = config.load(params).corpora[corpus]
    summary = preprocess(corpora.reader(corpus), settings, source, out, workers=workers)
    for split, found in summary.get("splits", {}).items():
        print(f"{corpus} {split}: {found['rows']} rows, {found['seconds'] / 60:.1f} minutes")
