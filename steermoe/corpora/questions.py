"""Questions in English about common words of WordNet 3.1 (Fellbaum 1998): meanings, opposites, uses, sizes.

No question needs to have one right answer: what is compared is what the same LLM says to it, spoken and written. Every
word that is asked about is in one split only, by a hash of it.

The WordNet licence allows any use, with its notice.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from steermoe.corpora.splits import SHARES
from steermoe.corpora.wordnet import PARTS, Sense, senses_of

COMMON = 12  # times that a word is in definitions and examples
ANIMAL, ARTIFACT, FOOD, PLANT = "05", "06", "13", "20"  # files of lexicographers (lexnames(5))
ABOUT_ANY = ("What does the word {} mean?", "What is another word for {}?")
ABOUT_A_THING = {
    ANIMAL: ("What is {a}?", "What does {a} eat?", "Where does {a} live?", "Can {a} swim?"),
    ARTIFACT: ("What is {a}?", "What is {a} used for?", "What is {a} made of?", "Where would you find {a}?"),
    FOOD: ("What is {}?", "What does {} taste like?", "What color is {}?"),
    PLANT: ("What is {a}?", "Where does {a} grow?"),
}
ABOUT_TWO = {  # about a thing and the next one of its kind
    ANIMAL: ("Which is larger, {a} or {b}?", "Which is faster, {a} or {b}?"),
    ARTIFACT: ("Which is larger, {a} or {b}?", "Which is heavier, {a} or {b}?"),
}
OPPOSITE = "What is the opposite of {}?"
_WORD = re.compile(r"[a-z]{3,}")
_RUDE = re.compile(
    r"offensive|obscene|disparag|vulgar|sex|genital|narcotic|drug|slang|racis"
)  # in what is left out


def questions(wordnet: Path, seed: int) -> dict[str, list[str]]:
    """Return the different questions of each split (train, dev, test), in an order that depends on the seed only.

    Args:
        wordnet: folder with data.noun, data.verb, data.adj and data.adv.
        seed: of splits and order.
    """
    senses = [sense for part in PARTS for sense in senses_of(wordnet / f"data.{part}")]
    counts = Counter(word for sense in senses for word in _WORD.findall(sense.gloss))
    kinds: dict[str, Counter[str]] = {}
    for sense in senses_of(wordnet / "data.noun"):
        for word in sense.words:
            kinds.setdefault(word, Counter())[sense.kind] += 1
    rude = {word for sense in senses if _RUDE.search(sense.gloss) for word in sense.words}
    seen: set[str] = set()
    found: dict[str, dict[str, None]] = {"train": {}, "dev": {}, "test": {}}
    things: dict[tuple[str, str], list[str]] = {}
    for sense in senses:
        for word in sense.words:
            if not _WORD.fullmatch(word) or counts[word] < COMMON or word in rude:
                continue
            split = split_of(word, seed)
            named = kinds.get(word, Counter())
            single = word == sense.words[0] and (not word.endswith("s") or word.endswith("ss"))
            thing = single and 2 * named[sense.kind] >= named.total() > 0
            asked = list(_about(word, sense, word not in seen, thing))
            seen.add(word)
            if thing and sense.kind in ABOUT_TWO:
                things.setdefault((sense.kind, split), []).append(word)
            found[split] |= dict.fromkeys(asked)
    for (kind, split), words in things.items():
        ordered = sorted(dict.fromkeys(words), key=lambda word: _rank(word, seed))
        for one, other in itertools.pairwise(ordered):
            found[split] |= dict.fromkeys(
                asked.format(a=_with_article(one), b=_with_article(other)) for asked in ABOUT_TWO[kind]
            )
    return {split: sorted(texts, key=lambda text: _rank(text, seed)) for split, texts in found.items()}


def _about(word: str, sense: Sense, new: bool, thing: bool) -> Iterator[str]:
    """Yield the questions about a word in one of its meanings.

    `new`: the first one; `thing`: most of its meanings are of this kind.
    """
    if new:
        yield from (asked.format(word) for asked in ABOUT_ANY)
    if word in sense.opposed:
        yield OPPOSITE.format(word)
    for asked in ABOUT_A_THING.get(sense.kind, ()) if thing else ():
        yield asked.format(word, a=_with_article(word))


def split_of(word: str, seed: int) -> str:
    """Return the split of the questions about a word."""
    place = int.from_bytes(_rank(word, seed), "big") / 2**64
    for split, part in SHARES.items():
        if place < part:
            return split
        place -= part
    return "train"


def _rank(text: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed} {text}".encode(), digest_size=8).digest()


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
