"""What others published on the sets that were measured: a section of the report, apart from all that is measured."""

from collections.abc import Sequence

from steermoe.analysis import claims
from steermoe.analysis.comparison import Comparison
from steermoe.analysis.report import Lines, markdown_table

# Corpus and split as they are named here -> data set and split as claims.yaml names them.
PUBLISHED = {
    ("librispeech", "test-clean"): ("LibriSpeech", "test-clean"),
    ("librispeech", "test-other"): ("LibriSpeech", "test-other"),
    ("aishell1", "test"): ("AISHELL-1", "test"),
    ("aishell2", "ios-test"): ("AISHELL-2", "iOS test"),
    ("clothoaqa", "test"): ("Clotho-AQA", "test"),
    ("fleurs", "de_de-test"): ("FLEURS German", "test"),
    ("fleurs", "fr_fr-test"): ("FLEURS French", "test"),
    ("fleurs", "es_419-test"): ("FLEURS Spanish", "test"),
    ("mls", "german-test"): ("MLS German", "test"),
    ("mls", "french-test"): ("MLS French", "test"),
    ("mls", "spanish-test"): ("MLS Spanish", "test"),
}


def published(comparison: Comparison, topics: Sequence[str]) -> Lines:
    """The claims of `topics` on the sets of the comparison that their authors did not withdraw; none: no lines.

    Raises:
        ConfigError: there is no such topic.
    """
    known = claims.load()
    chosen = [claim for topic in topics for claim in known.about(topic) if claim.status != "withdrawn"]
    body = []
    for place in dict.fromkeys((place.corpus, place.split) for place in comparison.sets):
        for claim in chosen:
            if (claim.dataset, claim.split) == PUBLISHED.get(place):
                value = f"{claim.value:g} {claim.unit}"
                status = claim.status if claim.note is None else f"{claim.status}: {claim.note}"
                where = [f"{claim.dataset} {claim.split}", claim.system, claim.metric, value]
                body.append([*where, claim.protocol, known.cited(claim), status])
    if not body:
        return []
    header = ["set", "system", "metric", "claimed", "protocol", "source", "status"]
    return [
        "## Claims of others",
        "",
        f"**Not measured here**: {claims.HEADING}. A claim can be compared with a figure above only where split, "
        "normaliser, decoding and training data are the same; mostly they are not, or not stated.",
        "",
        *markdown_table(header, body),
    ]
