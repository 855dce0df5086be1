"""`steermoe claims`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steermoe.serving.options import Json

if TYPE_CHECKING:
    from steermoe.analysis.claims import Claim, Claims
    from steermoe.analysis.recomputed import Ceilings, Recomputed


def main(
    topic: Annotated[
        list[str] | None, typer.Option(help="only this topic, again for more; default: all")
    ] = None,
    clothoaqa_csv: Annotated[
        Path | None, typer.Option(help="clotho_aqa_test.csv, to compute what scores on it can be at all")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what others published, recomputed where that can be done, and what contradicts it.

    These are claims under their authors' protocols, no measurements of ours.

    Examples:

        steermoe claims
        steermoe claims --topic parameters --topic cost
        steermoe claims --topic clothoaqa --clothoaqa-csv clotho_aqa_test.csv
    """
    from steermoe.analysis import claims, clotho_aqa, recomputed

    known = claims.load()
    chosen = [claim for name in topic or known.topics for claim in known.about(name)]
    ceilings = None if clothoaqa_csv is None else clotho_aqa.ceilings(clotho_aqa.read(clothoaqa_csv))
    found = {claim.id: recomputed.recompute(claim, known, ceilings) for claim in chosen}
    contradicted = recomputed.contradictions(known, chosen, ceilings)
    if as_json:
        plain = {
            "heading": claims.HEADING,
            "claims": [_plain(claim, known, found[claim.id]) for claim in chosen],
            "contradictions": contradicted,
            "clothoaqa": ceilings,
        }
        print(json.dumps(plain, indent=1))
        return
    _show(known, chosen, found, contradicted, ceilings)


def _plain(claim: "Claim", known: "Claims", found: "Recomputed | None") -> dict[str, Any]:
    source = known.sources[claim.source]
    recomputed = found and {
        "value": found.value,
        "text": found.text,
        "how": found.how,
        "agrees": found.agrees,
    }
    values = claim.model_dump(exclude={"of", "recompute", "part"})
    return {**values, "source": source.reference, "date": source.date, "recomputed": recomputed}


def _show(
    known: "Claims",
    chosen: "list[Claim]",
    found: "dict[str, Recomputed | None]",
    contradicted: list[str],
    ceilings: "Ceilings | None",
) -> None:
    from rich.table import Table

    from steermoe.analysis.claims import HEADING
    from steermoe.serving.terminal import plain_console

    console = plain_console()
    for topic in dict.fromkeys(claim.topic for claim in chosen):
        rows = [claim for claim in chosen if claim.topic == topic]
        cited = list(dict.fromkeys(known.cited(claim) for claim in rows))
        table = Table(title=f"{topic}: {HEADING}", title_justify="left")
        for column in ("system", "published", "recomputed", "protocol", "source"):
            table.add_column(column)
        for claim in rows:
            again = found[claim.id]
            short = "" if again is None else "see below" if again.value is None else again.text
            status = "" if claim.status == "standing" else f", {claim.status}"
            place = ", ".join(word for word in (claim.dataset, claim.split) if word != "-")
            figure = f"{claim.value:g} {claim.unit} {claim.metric}{status}"
            system = f"{claim.system} ({place})" if place else claim.system
            number = f"[{1 + cited.index(known.cited(claim))}]"
            table.add_row(system, figure, short, claim.protocol, number)
        console.print(table)
        for number, source in enumerate(cited, start=1):
            console.print(f"[{number}] {source}")
        console.print()
    if contradicted:
        console.print("Contradicted:", style="bold")
        for line in contradicted:
            console.print(f"- {line}", soft_wrap=True)
    for protocol, figures in (ceilings or {}).items():
        line = (
            f"Clotho-AQA, {protocol}: {figures['items']:,} items, oracle {100 * figures['oracle']:.1f} %, "
            f"best constant answer {100 * figures['constant']:.1f} %"
        )
        console.print(line)
