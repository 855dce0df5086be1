"""Resolve the selected variants: everything that the training of each depends on, and nothing else."""

from pathlib import Path

from pipeline.options import BaseModels, Inputs, Out, Params, Shards


def main(
    out: Out, inputs: Inputs, base: BaseModels, shards: Shards, params: Params = Path("params.yaml")
) -> None:
    """Write the resolved configuration of every variant into OUT, and the hashes of what it reads into INPUTS."""
    import json

    from steermoe import config
    from steermoe.atomic_io import write_text
    from steermoe.data.filters import skipped_reason
    from steermoe.data.shards import shards_of
    from steermoe.hub import adapters_of, sha256

    settings = config.load(params)
    known: dict[tuple[str, str], dict[str, str] | None] = {}

    def read(corpus: str, split: str) -> dict[str, str] | None:
        if (corpus, split) not in known:
            skipped = skipped_reason(shards / corpus) is not None
            paths = [] if skipped else shards_of(shards / corpus, split)
            known[corpus, split] = None if skipped else {path.name: sha256(path) for path in paths}
        return known[corpus, split]

    for name in settings.compare:
        variant = settings.variant(name)
        used = {
            use: {corpus: {split: read(corpus, split) for split in named} for corpus, named in splits.items()}
            for use, splits in (("train", variant.train_splits), ("dev", variant.dev_splits))
        }
        models = {
            part: json.loads((base / "variants" / name / f"{part}.json").read_text())
            for part in ("encoder", "llm", *(["video"] if variant.video is not None else []))
        }
        write_text(out / f"{name}.json", variant.to_json())
        write_text(
            inputs / f"{name}.json",
            json.dumps(models | used | adapters_of(variant.training), indent=1) + "\n",
        )
