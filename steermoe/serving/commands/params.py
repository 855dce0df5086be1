"""`steermoe params`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steermoe.serving.options import EncoderName, Json, LlmName, Params

if TYPE_CHECKING:
    from steermoe.analysis.audit import Audit
    from steermoe.analysis.claims import Claim


def main(
    arm: Annotated[
        list[str] | None, typer.Option(help="an arm of params.yaml, again for more; default: those in force")
    ] = None,
    encoder: EncoderName = None,
    llm: LlmName = None,
    params: Params = Path("params.yaml"),
    as_json: Json = False,
) -> None:
    """Count the parameters of a configuration, frozen and trained, part by part.

    The real modules are built on the meta device: no weights, no network, no memory. What was published about
    the same configuration stands beside it, with the reason where it differs.

    Examples:

        steermoe params
        steermoe params --arm steermoe-16 --encoder whisper-large-v3 --llm qwen2.5-7b-instruct
        steermoe params --json
    """
    from steermoe import config
    from steermoe.analysis import audit

    settings = config.load(params)
    found = {}
    for name in arm or settings.compare:
        chosen = settings.arm(name)
        sections = audit.Sections.of(chosen)
        found[name] = audit.audit(sections, encoder or chosen.encoder.path, llm or chosen.llm.path)
    if as_json:
        print(json.dumps({name: _plain(audited) for name, audited in found.items()}, indent=1))
        return
    from steermoe.serving.terminal import plain_console

    console = plain_console()
    for name, audited in found.items():
        _show(console, name, audited)


def _show(console: Any, name: str, audited: "Audit") -> None:
    from rich.table import Table

    from steermoe.analysis import claims, recomputed

    known = claims.load()
    matching = published(audited)
    marks: dict[str, str] = {}
    for number, claim in enumerate(matching, start=1):
        marks[claim.part] = f"{marks.get(claim.part, '')} {claim.value:g} M [{number}]".lstrip()
    table = Table(title=f"{name}: {audited.encoder} + {audited.llm}", title_justify="left")
    for column in ("part", "", "parameters", "published"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for kind, counts in (("frozen", audited.frozen), ("trained", audited.trained)):
        for part, count in counts.items():
            table.add_row(part, kind, f"{count:,}", marks.get(part, ""))
        table.add_section()
    share = f"{100 * audited.share:.3f} % of all"
    table.add_row("all trained", share, f"{audited.total:,}", marks.get("trained", ""))
    console.print(table)
    for number, claim in enumerate(matching, start=1):
        again = recomputed.recompute(claim, known, None)
        counts = f" As published it has {again.text}." if again else ""
        line = (
            f"[{number}] {claim.value:g} M, {claim.status} ({known.cited(claim)}).{counts} Why: {claim.note}"
        )
        console.print(line)
    console.print()


def published(audited: "Audit") -> "list[Claim]":
    """The claims about these models, this method and as many experts, whatever else is set."""
    from steermoe.analysis import claims

    steering = audited.sections.steering
    found = (audited.encoder, audited.llm, audited.sections.method, steering and steering.num_experts)
    return [
        claim
        for claim in claims.load().about("parameters")
        if claim.of and (claim.of.encoder, claim.of.llm, claim.of.method, claim.of.num_experts) == found
    ]


def _plain(audited: "Audit") -> dict[str, Any]:
    from steermoe.analysis import claims

    known = claims.load()
    rows = [
        {"part": c.part, "millions": c.value, "status": c.status, "source": known.cited(c), "why": c.note}
        for c in published(audited)
    ]
    return {**audited.to_json(), "published": rows}
