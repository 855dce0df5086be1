"""Which option of a multiple-choice question an answer in free text chooses."""

import re
import string
from collections.abc import Callable, Iterator, Sequence

from steermoe.evaluation.normalizers import Normalizer, typed_alike

# Part of a word; beside Chinese, Japanese and Korean writing a letter stands alone without spaces, too.
_WORD = "[^\\W\u2e80-\u9fff\uac00-\ud7af]"
# A letter that is no part of a word, of an abbreviation (U.S., x-ray, it's, B&B) or of a sign (C#, A+).
_LETTER = re.compile(rf"(?<!{_WORD})(?<!{_WORD}['.&-])([A-Za-z])(?!{_WORD}|['.&-]{_WORD}|\s?[#+♯♭])")
_ANNOUNCED = re.compile(
    r"(?:\b(?:answer|options?|choice|letter|correct|pick|choose|chose|select|say|go(?:ing)? with|think|believe|guess)"
    r"|答案|[选選])(?:\W*(?:\b(?:is|are|was|would be|should be|must be|that|it is|it's|options?|choice|letter)\b"
    r"|[是为為]))*\W*$",
    re.IGNORECASE,
)
_NAMED = re.compile(r"\b(?:options?|choice|letter)\W*$", re.IGNORECASE)
_FILLERS = r"(?:\s+(?:an?|the|options?|choice|answer|letter|think|believe|that|it's|it is|be|is))*"
_DENIED = re.compile(
    rf"(?:\b(?:not|neither|nor|no|never|without|rather than|instead of)|n't){_FILLERS}[\s(\[]*$",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(
    r"[)\]]?\s+(?:is|are|was|were)\s*(?:n't|not|wrong|incorrect|false)\b", re.IGNORECASE
)
_JOINED = re.compile(r"[)\]]?\s*(?:[,/&]|(?:,\s*)?\b(or|nor|and)\b)\s*(?:option\s+)?[(\[]?", re.IGNORECASE)
_BEHIND = re.compile(
    r"['\])}]*\s*(?:[).:,;\u2013\u2014\n]|-\s|$)|\s+(?:is|because|since)\b"
)  # of a letter at the start
_NO_LETTER = re.compile(rf"\s+(?!(?:is|and|or|because|since)\b){_WORD}")  # "A dog", "I think"
_ANOTHER = re.compile(r"(?:or|and)\b", re.IGNORECASE)
_REASON = re.compile(r"\b(?:because|since|due to)\b", re.IGNORECASE)
_MARKUP = re.compile(r"\\boxed|[*\"\u201c\u201d]|\b_+|_+\b|</?\w+>|\$(?=[A-Za-z]\$)|(?<=\$[A-Za-z])\$")
_ARTICLE = re.compile(r"^(?:an?|the) (?=.)")
_CLAUSE = re.compile(r"[.;!?\n](?:\s|$)")

Form = Callable[[str], str]  # what an option and an answer are compared in


def choice(hypothesis: str, choices: Sequence[str], normalize: Normalizer) -> int | None:
    """The option that a text chooses; None where it chooses none, or several.

    In this order: the text is an option's own text; it states a letter ("Answer: B", "(b)", "B. Paris"), unless what
    stands beside the letter is another option's text; it holds the text of one option alone; it holds one letter
    alone. What is denied ("not a dog", "neither A nor B") is not chosen, and reasons ("because ...") are read only
    where nothing is chosen before them. An option that is a single letter (a musical key) is meant by that
    letter, wherever it stands. Options have letters, so a number is never a label.
    """
    forms: tuple[Form, ...] = (_plain, lambda text: normalize(_plain(text)))
    text = _MARKUP.sub("", typed_alike(hypothesis, "und", "NFKC")).strip()
    whole = _equal(text, choices, forms)
    if whole is not None:
        return whole
    for part in dict.fromkeys((_REASON.split(text, maxsplit=1)[0].strip(), text)):
        labels = list(_labels(part, choices))
        mentioned, lettered = _mentioned(part, choices, forms), {number for _, number, _ in labels}
        plainest = [label for label in labels if label[0] == max(labels)[0] > 0]
        if any(_ANOTHER.match(behind) for *_, behind in labels):
            found = mentioned | lettered
        elif len({number for _, number, _ in plainest}) == 1:
            _, number, behind = plainest[0]
            beside = _equal(behind, choices, forms)
            return number if beside is None else beside
        else:
            found = mentioned or lettered
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _plain(text: str) -> str:
    """Lower case, without what encloses a text; signs inside it stay (`C#`, `-5`)."""
    text = _MARKUP.sub("", typed_alike(text, "und", "NFKC").casefold())
    text = " ".join(text.split()).strip(" .,:;!?'\"()[]{}")
    return _ARTICLE.sub("", text)


def _equal(text: str, choices: Sequence[str], forms: Sequence[Form]) -> int | None:
    """The one option that the text, or its first clause, is."""
    for part in (text, _CLAUSE.split(text, maxsplit=1)[0]):
        for form in forms:
            options, read = [form(option) for option in choices], form(part)
            if read and options.count(read) == 1:
                return options.index(read)
    return None


def _labels(text: str, choices: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Letters of options: how plainly each is stated (2: announced, 1: set apart, 0: it is there), the option's
    number, and what stands behind it.
    """
    options = [_plain(option) for option in choices]
    covered = [
        m.span() for o in options if len(o) > 1 for m in re.finditer(re.escape(o), text, re.IGNORECASE)
    ]
    last, level, denied = 0, None, False  # of the letter before
    for match in _LETTER.finditer(text):
        start, end = match.span(1)
        before, behind, letter = text[:start], text[end:], match[1].lower()
        joined = _JOINED.fullmatch(text[last:start]) if level is not None else None
        own = _level(before, match[1], behind)
        if any(low <= start < high for low, high in covered) or (own is None and joined is None):
            continue
        denied = bool(
            _DENIED.search(before)
            or _DENIED_BEHIND.match(behind)
            or (joined and denied and joined[1] and joined[1].lower() != "and")
        )
        level, last = max(own or 0, (level or 0) if joined else 0), end
        number = options.index(letter) if letter in options else ord(letter) - ord("a")
        if number < len(choices) and not denied:
            yield level, number, behind.lstrip(" \n)]}'.:,;(-\u2013\u2014")


def _level(before: str, letter: str, behind: str) -> int | None:
    """How plainly a letter is stated as a label (see `_labels`); None where it is none."""
    bracketed = before.endswith(("(", "[", "{")) and behind.startswith((")", "]", "}"))
    if letter in "aAiI" and _NO_LETTER.match(behind) and not _NAMED.search(before):
        return None
    if _ANNOUNCED.search(before):
        return 2
    if bracketed or behind.startswith(")") or (not re.search(r"\w", before) and _BEHIND.match(behind)):
        return 1
    return 0 if letter.isupper() else None


def _mentioned(text: str, choices: Sequence[str], forms: Sequence[Form]) -> set[int]:
    """Options whose text stands in `text` and is not denied there; of texts inside one another the longest."""
    for form in forms:
        read, spans = form(text), list[tuple[int, int, int]]()
        for number, option in enumerate(map(form, choices)):
            option = _ARTICLE.sub("", option)
            if option and not re.fullmatch("[a-z]", option):
                first, last = (_WORD if re.match(_WORD, option[place]) else r"(?!)." for place in (0, -1))
                found = re.finditer(rf"(?<!{first}){re.escape(option)}(?!{last}|#)", read)
                spans += [(*match.span(), number) for match in found]
        longest = [
            (start, end, number)
            for start, end, number in spans
            if not any(a <= start and end <= b and b - a > end - start for a, b, _ in spans)
        ]
        if longest:
            return {
                number
                for start, end, number in longest
                if not _DENIED.search(read[:start]) and not _DENIED_BEHIND.match(read[end:])
            }
    return set()


def spelled_out(question: str, options: Sequence[str]) -> list[str]:
    """The texts of options that are letters, from the lines of `corpora.mmau.ask`: an answer may give either.

    The options as they are where they are no letters, or where a text is a single letter itself.
    """
    letters = list(string.ascii_uppercase[: len(options)])
    lines = question.splitlines()[-len(options) :]
    texts = [
        line[4:] for letter, line in zip(letters, lines, strict=False) if line.startswith(f"({letter}) ")
    ]
    are_letters = list(options) == letters and len(texts) == len(letters)
    return texts if are_letters and all(len(text.strip()) > 1 for text in texts) else list(options)
