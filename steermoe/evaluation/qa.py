"""Score answers: protocols of question sets, token F1, captions by ROUGE-L, and multiple choice.

Clotho-AQA (Lipping et al. 2022) has three people's answers to every question, and published figures on it differ
in which of them count:

- raw: every person's answer is an item.
- clean: questions on which more than half agree, against what they agree on.
- unanimous: questions on which all agree.
- binary: the unanimous ones answered by yes or no.
- single-word: the clean ones answered by another single word.

ROUGE-L (Lin 2004) is computed as in the COCO caption evaluation (Chen et al. 2015), from which figures on Clotho
come. CIDEr-D, SPICE and SPIDEr need Java programs and are not computed.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl
from rapidfuzz.distance import LCSseq

from steermoe.evaluation.normalizers import Normalizer, typed_alike

BETA = 1.2  # weight of recall against precision in ROUGE-L, as in COCO
BINARY = ("yes", "no")
COLUMNS = pl.Schema(
    {
        "expected": pl.String(),
        "said": pl.List(pl.String()),
        "said_hits": pl.Int64(),
        "agreed": pl.String(),
        "agreeing": pl.Int64(),
        "agreed_exact": pl.Boolean(),
        "token_f1": pl.Float64(),
        "choice_exact": pl.Boolean(),
        "rouge_l": pl.Float64(),
    }
)
# Of questions that several people answered, after normalisation.
SEVERAL = pl.col("said").list.len() > 1
CLEAN = SEVERAL & (2 * pl.col("agreeing") > pl.col("said").list.len())
UNANIMOUS = SEVERAL & (pl.col("agreeing") == pl.col("said").list.len())
BINARY_ONLY = UNANIMOUS & pl.col("agreed").is_in(BINARY)
SINGLE_WORD = CLEAN & ~pl.col("agreed").is_in(BINARY) & ~pl.col("agreed").str.contains(" ")


# Part of a word. In Chinese, Japanese and Korean text a letter is a word of its own without spaces.
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
_DENIED_AFTER = re.compile(
    r"[)\]]?\s+(?:is|are|was|were)\s*(?:n't|not|wrong|incorrect|false)\b", re.IGNORECASE
)
_JOINED = re.compile(r"[)\]]?\s*(?:[,/&]|(?:,\s*)?\b(or|nor|and)\b)\s*(?:option\s+)?[(\[]?", re.IGNORECASE)
_AFTER_LABEL = re.compile(
    r"['\])}]*\s*(?:[).:,;\u2013\u2014\n]|-\s|$)|\s+(?:is|because|since)\b"
)  # of a letter at the start
_NO_LETTER = re.compile(rf"\s+(?!(?:is|and|or|because|since)\b){_WORD}")  # "A dog", "I think"
_ANOTHER = re.compile(r"(?:or|and)\b", re.IGNORECASE)
_REASON = re.compile(r"\b(?:because|since|due to)\b", re.IGNORECASE)
_MARKUP = re.compile(r"\\boxed|[*\"\u201c\u201d]|\b_+|_+\b|</?\w+>|\$(?=[A-Za-z]\$)|(?<=\$[A-Za-z])\$")
_ARTICLE = re.compile(r"^(?:an?|the) (?=.)")
_CLAUSE = re.compile(r"[.;!?\n](?:\s|$)")

Form = Callable[[str], str]  # what an option and an answer are compared in


def count_answers(frame: pl.DataFrame, hypotheses: Sequence[str], normalize: Normalizer) -> pl.DataFrame:
    """Score each hypothesis: a row of COLUMNS for each of `frame` (language, task, prompt, target, answers, choices).

    expected: the target, normalised. said: the people's answers, normalised; empty for other tasks. said_hits:
    how many of them the hypothesis equals. agreed: the most frequent of them (the first of several), agreeing: its
    count, agreed_exact: whether the hypothesis equals it. token_f1: against the nearest answer. choice_exact:
    whether the right option is chosen; null without options. rouge_l: of a caption, against all that people gave.
    """
    rows = [
        _counted(row, hypothesis, normalize)
        for row, hypothesis in zip(frame.iter_rows(named=True), hypotheses, strict=True)
    ]
    return pl.DataFrame(rows, schema=COLUMNS)


def _counted(row: dict[str, Any], hypothesis: str, normalize: Normalizer) -> dict[str, Any]:
    asked, language = row["task"] == "answer", row["language"]
    given = [normalize(answer, language) for answer in row["answers"]]
    expected, read = normalize(row["target"], language), normalize(hypothesis, language)
    said = given if asked else []
    (agreed, agreeing), *_ = Counter(said).most_common(1) or [("", 0)]
    references = said or [expected] * asked
    chosen = None
    if row["choices"]:
        options = spelled_out(row["prompt"], row["choices"])
        chosen = choice(hypothesis, options, normalize) == list(row["choices"]).index(row["target"])
    return {
        "expected": expected,
        "said": said,
        "said_hits": said.count(read),
        "agreed": agreed,
        "agreeing": agreeing,
        "agreed_exact": bool(said) and read == agreed,
        "token_f1": max((token_f1(reference, read) for reference in references), default=0.0),
        "choice_exact": chosen,
        "rouge_l": rouge_l(given or [expected], read) if row["task"] == "caption" else 0.0,
    }


def token_f1(reference: str, hypothesis: str) -> float:
    """Return the harmonic mean of precision and recall over words in any order (Rajpurkar et al. 2016)."""
    words, read = reference.split(), hypothesis.split()
    if not words or not read:
        return float(words == read)
    return 2 * sum((Counter(words) & Counter(read)).values()) / (len(words) + len(read))


def rouge_l(references: Sequence[str], hypothesis: str) -> float:
    """Return the F-measure of the longest common subsequences of words, from 0 to 1.

    Precision and recall are each the best over the references; 0 if either text has no words.
    """
    read = hypothesis.split()
    common = [(LCSseq.similarity(said.split(), read), len(said.split())) for said in references]
    if not any(count for count, _ in common):
        return 0.0
    precision = max(count for count, _ in common) / len(read)
    recall = max(count / words for count, words in common if words)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def choice(hypothesis: str, choices: Sequence[str], normalize: Normalizer) -> int | None:
    """Return the option that an answer in free text chooses; None for none or several (see docs/scoring.md)."""
    forms: tuple[Form, ...] = (_plain, lambda text: normalize(_plain(text)))
    text = _MARKUP.sub("", typed_alike(hypothesis, "und", "NFKC")).strip()
    whole = _equal(text, choices, forms)
    if whole is not None:
        return whole
    for part in dict.fromkeys((_REASON.split(text, maxsplit=1)[0].strip(), text)):
        labels = list(_labels(part, choices))
        mentioned, lettered = _mentioned(part, choices, forms), {number for _, number, _ in labels}
        plainest = [label for label in labels if label[0] == max(labels)[0] > 0]
        if any(_ANOTHER.match(after) for *_, after in labels):
            found = mentioned | lettered
        elif len({number for _, number, _ in plainest}) == 1:
            _, number, after = plainest[0]
            following = _equal(after, choices, forms)
            return number if following is None else following
        else:
            found = mentioned or lettered
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _plain(text: str) -> str:
    """Return the text in lower case, without enclosing punctuation; signs inside it stay (`C#`, `-5`)."""
    text = _MARKUP.sub("", typed_alike(text, "und", "NFKC").casefold())
    text = " ".join(text.split()).strip(" .,:;!?'\"()[]{}")
    return _ARTICLE.sub("", text)


def _equal(text: str, choices: Sequence[str], forms: Sequence[Form]) -> int | None:
    """Return the one option that the text, or its first clause, equals."""
    for part in (text, _CLAUSE.split(text, maxsplit=1)[0]):
        for form in forms:
            options, read = [form(option) for option in choices], form(part)
            if read and options.count(read) == 1:
                return options.index(read)
    return None


def _labels(text: str, choices: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield the letters of options: how clearly each is stated (2: announced, 1: set apart, 0: present), the option's
    number, and the text after it.
    """
    options = [_plain(option) for option in choices]
    covered = [
        m.span() for o in options if len(o) > 1 for m in re.finditer(re.escape(o), text, re.IGNORECASE)
    ]
    last, level, denied = 0, None, False  # of the letter before
    for match in _LETTER.finditer(text):
        start, end = match.span(1)
        before, after, letter = text[:start], text[end:], match[1].lower()
        joined = _JOINED.fullmatch(text[last:start]) if level is not None else None
        own = _level(before, match[1], after)
        if any(low <= start < high for low, high in covered) or (own is None and joined is None):
            continue
        denied = bool(
            _DENIED.search(before)
            or _DENIED_AFTER.match(after)
            or (joined and denied and joined[1] and joined[1].lower() != "and")
        )
        level, last = max(own or 0, (level or 0) if joined else 0), end
        number = options.index(letter) if letter in options else ord(letter) - ord("a")
        if number < len(choices) and not denied:
            yield level, number, after.lstrip(" \n)]}'.:,;(-\u2013\u2014")


def _level(before: str, letter: str, after: str) -> int | None:
    """Return how clearly a letter is stated as a label (see `_labels`); None where it is no label."""
    bracketed = before.endswith(("(", "[", "{")) and after.startswith((")", "]", "}"))
    if letter in "aAiI" and _NO_LETTER.match(after) and not _NAMED.search(before):
        return None
    if _ANNOUNCED.search(before):
        return 2
    if bracketed or after.startswith(")") or (not re.search(r"\w", before) and _AFTER_LABEL.match(after)):
        return 1
    return 0 if letter.isupper() else None


def _mentioned(text: str, choices: Sequence[str], forms: Sequence[Form]) -> set[int]:
    """Return the options whose text occurs in `text` and is not denied; of texts inside one another the longest."""
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
                if not _DENIED.search(read[:start]) and not _DENIED_AFTER.match(read[end:])
            }
    return set()


def spelled_out(question: str, options: Sequence[str]) -> list[str]:
    """Return the texts of options that are letters, from the lines that `corpora.choices.ask` adds to the question.

    Options that are no letters are returned as they are, as are letters whose texts are single letters themselves.
    """
    letters = list(string.ascii_uppercase[: len(options)])
    lines = question.splitlines()[-len(options) :]
    texts = [
        line[4:] for letter, line in zip(letters, lines, strict=False) if line.startswith(f"({letter}) ")
    ]
    are_letters = list(options) == letters and len(texts) == len(letters)
    return texts if are_letters and all(len(text.strip()) > 1 for text in texts) else list(options)
