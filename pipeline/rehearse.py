"""Make what stands in for the models and archives of a profile that is a rehearsal."""

from pathlib import Path

from pipeline.options import Out, Params


def main(out: Out, params: Params = Path("params.yaml")) -> None:
    """Write tiny models and small archives into OUT; of any other profile, a note that there is nothing to make."""
    import json

    from steermoe import config
    from steermoe.data.staging import write_text

    settings = config.load(params)
    rehearsal = settings.rehearsal
    if rehearsal is not None:
        from steermoe.rehearsal.archives import make_archives
        from steermoe.rehearsal.models import make_models

        make_models(rehearsal.seed, out)
        make_archives(settings.corpora, rehearsal, out)
    made = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    write_text(out / "made.json", json.dumps({"profile": settings.profile, "made": made}, indent=1) + "\n")
    print(f"{settings.profile}: made {', '.join(made)}" if made else f"{settings.profile} is no rehearsal")
