"""Find or fetch the frozen models, and write down what they are."""

from pathlib import Path
from typing import Any

from pipeline.options import Out, Params


def main(out: Out, params: Params = Path("params.yaml")) -> None:
    """Write path, commit and hashes of the frozen models into OUT, of the profile and of every selected variant.

    Licences are printed first. Models of the hub are compared with the lock beside the profile, or noted there.
    """
    import json

    from steermoe import config, weights
    from steermoe import hub as base_models
    from steermoe.atomic_io import write_text
    from steermoe.data.licences import licence_note

    settings = config.load(params)
    users = {"": models_of(settings)}
    users |= {f"variants/{name}": models_of(settings.variant(name)) for name in settings.compare}
    sections = {
        (section.path, section.revision): (section, setting)
        for models in users.values()
        for setting, section in models.items()
    }
    for section, _ in sections.values():
        if section.path in weights.NAMED:
            print(f"{section.path}: {weights.note(section.path)}", flush=True)
        elif config.of_the_hub(section.path) and not Path(section.path).is_dir():
            print(licence_note(section.path), flush=True)
    found = {key: base_models.identity(section, setting) for key, (section, setting) in sections.items()}
    file = config.lock_file(params, settings.profile)
    before = config.read_lock(file)
    after = base_models.locked(found.values(), before, file)
    if after != before:
        write_text(file, config.lock_text(after))
        print(f"{file}: locked {', '.join(after)}")
    written = {
        f"{user}/{setting}.json": found[section.path, section.revision]
        for user, models in users.items()
        for setting, section in models.items()
    }
    llm = written["/llm.json"]
    tokenizer = llm["files"].get(base_models.TOKENIZER)
    written["/tokenizer.json"] = {"path": llm["path"], "tokenizer": tokenizer}
    for name, model in written.items():
        write_text(out / name.lstrip("/"), json.dumps(model, indent=1) + "\n")


def models_of(chosen: Any) -> dict[str, Any]:
    """The sections of the frozen models of a profile or of a variant; `video` where there is such a branch."""
    video = {} if chosen.video is None else {"video": chosen.video.encoder}
    return {"encoder": chosen.encoder, "llm": chosen.llm} | video
