"""Captions against what several people wrote about the same recording.

ROUGE-L (Lin 2004) as the COCO caption evaluation has it (Chen et al. 2015), from which figures on Clotho come: it
rewards the words of a reference in their order, gaps allowed. What papers lead with, CIDEr-D, SPICE and their mean
SPIDEr, needs Java programs and their models (SPICE's scene graph parser, the PTB tokenizer): they are not computed
here, and a ROUGE-L after one of this library's normalisers is compared with a published one only by its tendency.
"""

from collections.abc import Sequence

BETA = 1.2  # weight of recall against precision, as in COCO


def rouge_l(references: Sequence[str], hypothesis: str) -> float:
    """F-measure of the longest common subsequences of words, from 0 to 1.

    Precision and recall are each the best over the references; 0 where either text has no words.

    Raises:
        ValueError: no references.
    """
    if not references:
        raise ValueError("ROUGE-L without a reference; give at least one")
    read = hypothesis.split()
    common = [(longest_common(said.split(), read), len(said.split())) for said in references]
    if not read or not any(count for count, _ in common):
        return 0.0
    precision = max(count for count, _ in common) / len(read)
    recall = max(count / words for count, words in common if words)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    above = [0] * (len(second) + 1)
    for word in first:
        line = [0]
        for column, other in enumerate(second):
            line.append(above[column] + 1 if word == other else max(above[column + 1], line[column]))
        above = line
    return above[-1]
