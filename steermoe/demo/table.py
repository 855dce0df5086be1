"""Transcripts and answers side by side, as HTML in which nothing that was said is markup."""

import difflib
import html
from collections.abc import Sequence

CSS = """
.heard {border: 1px solid var(--border-color-primary); border-radius: 8px; overflow: hidden;
  background: var(--block-background-fill); display: grid; grid-template-columns: max-content 1fr}
.heard > * {padding: .4rem .8rem; overflow-wrap: anywhere}
.heard > :nth-child(n+3) {border-top: 1px solid var(--border-color-primary)}
.heard .name {max-width: 7.5rem; font-size: .85rem; opacity: .8; padding-right: 0}
.heard .first {grid-column: 1 / -1; border-left: 4px solid var(--color-accent)}
.heard .first.name {max-width: none; padding-bottom: 0}
.heard .first.text {font-size: 1.2rem; padding-top: 0; border-top: none}
.heard mark {background: #ffe2a8; color: #3b2a00; border-radius: 3px; padding: 0 .15em}
"""


def table(texts: Sequence[tuple[str, str, str | None]]) -> str:
    """Return texts as HTML under their titles, the first above the others; nothing in a title or text is markup.

    Args:
        texts: title, text, and the text to compare it with, whose differing words are marked; or None.
    """
    shown = []
    for number, (title, text, plain) in enumerate(texts):
        first = "" if number else " first"
        shown.append(f'<div class="name{first}">{html.escape(title)}</div>')
        shown.append(f'<div class="text{first}">{_marked(text, plain) or "<i>nothing</i>"}</div>')
    return f'<div class="heard">{"".join(shown)}</div>'


def _marked(text: str, plain: str | None) -> str:
    words = text.split()
    if plain is None:
        return html.escape(" ".join(words))
    found = []
    for kind, _, _, first, last in difflib.SequenceMatcher(None, plain.split(), words, False).get_opcodes():
        piece = html.escape(" ".join(words[first:last]))
        if piece:
            found.append(piece if kind == "equal" else f"<mark>{piece}</mark>")
    return " ".join(found)
