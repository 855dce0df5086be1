"""Fetch one corpus."""

from pathlib import Path

from pipeline.options import Out, Params


def main(corpus: str, out: Out, params: Params = Path("params.yaml")) -> None:
    """Fetch CORPUS into OUT, as the selected profile says."""
    from steermoe import config, corpora

    corpora.fetch(corpus, config.load(params).corpora[corpus], out)
