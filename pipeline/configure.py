"""Resolve the arms in force: everything that the training of each depends on, and nothing else."""

from pathlib import Path

from pipeline.options import BaseModels, Inputs, Out, Params, Shards


def main(
    out: Out, inputs: Inputs, base: BaseModels, shards: Shards, params: Params = Path("params.yaml")
) -> None:
    """Write the resolved configuration of every arm into OUT, and the hashes of what it reads into INPUTS."""
    import json

    from steermoe import config
    from steermoe.data.adapters import adapters_of
    from steermoe.data.base_models import sha256
    from steermoe.data.shards import shards_of
    from steermoe.data.skipped import skipped_reason
    from steermoe.data.staging import write_text

    settings = config.load(params)
    known: dict[tuple[str, str], dict[str, str] | None] = {}

    def read(corpus: str, split: str) -> dict[str, str] | None:
        if (corpus, split) not in known:
            skipped = skipped_reason(shards / corpus) is not None
            paths = [] if skipped else shards_of(shards / corpus, split)
            known[corpus, split] = None if skipped else {path.name: sha256(path) for path in paths}
        return known[corpus, split]

    for name in settings.compare:
        arm = settings.arm(name)
        used = {
            use: {corpus: {split: read(corpus, split) for split in named} for corpus, named in splits.items()}
            for use, splits in (("train", arm.train_splits), ("dev", arm.dev_splits))
        }
        models = {
            part: json.loads((base / "arms" / name / f"{part}.json").read_text())
            for part in ("encoder", "llm", *(["video"] if arm.video is not None else []))
        }
        write_text(out / f"{name}.json", arm.to_json())
        write_text(
            inputs / f"{name}.json", json.dumps(models | used | adapters_of(arm.training), indent=1) + "\n"
        )
