"""Ceilings of Clotho-AQA under each protocol, on answers that can be counted by hand and on drawn ones."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.analysis import claims, clotho_aqa, recomputed

ANSWERS = st.lists(
    st.lists(st.sampled_from(["yes", "no", "rain", "two"]), min_size=3, max_size=3), min_size=1
)


def written(
    folder: Path, questions: list[list[str]], header: str = "file_name,QuestionText,answer,confidence"
) -> Path:
    rows = [f"a{n}.wav,Is it {n}?,{answer},Yes" for n, answers in enumerate(questions) for answer in answers]
    path = folder / "clotho_aqa_test.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_counted_by_hand(tmp_path: Path) -> None:
    questions = [["yes", " Yes", "YES"], ["yes", "yes", "no"], ["no", "no", "no"], ["rain", "rain", "rain"],
                 ["one", "two", "three"]]  # fmt: skip
    found = clotho_aqa.ceilings(clotho_aqa.read(written(tmp_path, questions)))
    assert found["raw"] == {"items": 15, "oracle": pytest.approx(12 / 15), "constant": pytest.approx(5 / 15)}
    assert found["clean"] == {"items": 4, "oracle": 1, "constant": pytest.approx(2 / 4)}
    assert found["unanimous"] == {"items": 3, "oracle": 1, "constant": pytest.approx(1 / 3)}
    assert found["binary"] == {"items": 2, "oracle": 1, "constant": pytest.approx(1 / 2)}


@given(ANSWERS)
def test_agrees_with_counting(tmp_path_factory: pytest.TempPathFactory, questions: list[list[str]]) -> None:
    path = written(tmp_path_factory.mktemp("csv"), questions)
    found = clotho_aqa.ceilings(clotho_aqa.read(path))
    counts = [Counter(answers).most_common(1)[0] for answers in questions]
    everything = Counter(answer for answers in questions for answer in answers)
    assert found["raw"]["oracle"] == pytest.approx(sum(count for _, count in counts) / (3 * len(questions)))
    assert found["raw"]["constant"] == pytest.approx(everything.most_common(1)[0][1] / (3 * len(questions)))
    for protocol, least in (("clean", 2), ("unanimous", 3)):
        agreed = [answer for answer, count in counts if count >= least]
        assert found[protocol]["items"] == len(agreed)
        if agreed:
            share = Counter(agreed).most_common(1)[0][1] / len(agreed)
            assert found[protocol]["constant"] == pytest.approx(share)
    assert found["binary"]["items"] <= found["unanimous"]["items"] <= found["clean"]["items"]


def test_claims_about_the_corpus_are_computed_from_the_csv(tmp_path: Path) -> None:
    known = claims.load()
    claim = known.claims["constant-clean"]
    assert recomputed.recompute(claim, known, None) is None
    ceilings = clotho_aqa.ceilings(clotho_aqa.read(written(tmp_path, [["yes"] * 3, ["no"] * 3])))
    found = recomputed.recompute(claim, known, ceilings)
    assert found is not None
    assert (found.text, found.agrees) == ("50.0 %", False)
    right = recomputed.recompute(
        claim, known, {**ceilings, "clean": {"items": 2476, "oracle": 1, "constant": 0.4313}}
    )
    assert right is not None
    assert right.agrees


def test_unfit_csvs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks the columns answer; found: file_name, QuestionText, reply"):
        clotho_aqa.read(written(tmp_path, [], header="file_name,QuestionText,reply"))
    with pytest.raises(ValueError, match=r"a1\.wav, 'Is it 1\?': found 2 answers; legal: 3 a question"):
        clotho_aqa.read(written(tmp_path, [["yes"] * 3, ["no"] * 2]))
    with pytest.raises(ValueError, match="no csv that can be read"):
        clotho_aqa.read(tmp_path / "missing.csv")
