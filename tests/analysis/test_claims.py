"""Published figures: the file is sound, statuses agree with what is computed, and they stay apart from ours."""

from importlib.resources import files
from pathlib import Path

import polars as pl
import pytest
from ruamel.yaml import YAML

from steermoe.analysis import claims, recomputed
from steermoe.config import ConfigError

KNOWN = claims.load()
TEXT = files("steermoe.analysis").joinpath("claims.yaml").read_text(encoding="utf-8")
COMPUTED = [claim for claim in KNOWN.claims.values() if claim.of or claim.recompute]
FREE = [claim for claim in COMPUTED if not claim.recompute or claim.recompute["how"] != "clothoaqa"]


@pytest.mark.parametrize("claim", FREE, ids=lambda claim: claim.id)
def test_status_agrees_with_what_is_computed(claim: claims.Claim) -> None:
    found = recomputed.recompute(claim, KNOWN, None)
    assert found is not None
    if found.agrees is None:
        assert claim.against is not None  # nothing but another claim decides
    else:
        assert found.agrees == (claim.status == "standing")
    assert found.text
    assert found.how


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("params-w7b", "5,246,752"),
        ("params-w05b", "1,803,424"),
        ("params-c7b", "4,918,928"),
        ("params-c3b", "2,951,312"),
        ("params-lora", "10,489,344"),
        ("growth-16", "6.7 %"),
        ("router-32x", "1 x"),
        ("memory-7b", "16.5 GB"),
        ("params-whisper", "636,968,960"),
    ],
)
def test_what_comes_out_instead(name: str, text: str) -> None:
    found = recomputed.recompute(KNOWN.claims[name], KNOWN, None)
    assert found is not None
    assert found.text == text


def test_hours_come_out_as_a_share_of_the_peak() -> None:
    found = recomputed.recompute(KNOWN.claims["cost-40"], KNOWN, None)
    assert found is not None
    assert "(10.4 % of the peak in 40 GPU-h)" in found.text
    assert "(4.7 %)" in found.text


def test_every_contradiction_is_a_line_that_can_be_checked() -> None:
    everything = KNOWN.about(None)
    lines = recomputed.contradictions(KNOWN, everything, None)
    contradicted = [claim for claim in everything if claim.status == "contradicted"]
    assert [line.partition(":")[0] for line in lines] == [claim.id for claim in contradicted]
    for line in lines:
        assert "; recomputed: " in line or "; against " in line
        assert "\n" not in line


def test_what_a_claim_cannot_stand_beside_is_far_from_it() -> None:
    for claim in KNOWN.claims.values():
        if claim.against is not None:
            other = KNOWN.claims[claim.against]
            assert (claim.unit, claim.metric) == (other.unit, other.metric), claim.id
            assert max(claim.value, other.value) > 1.5 * min(claim.value, other.value), claim.id


@pytest.mark.parametrize("topic", KNOWN.topics)
def test_table_says_that_others_measured(topic: str) -> None:
    table = claims.table(topic)
    assert table.heading == f"{topic}: published by others, other protocols"
    assert table.rows.height == len(KNOWN.about(topic)) > 0
    assert {"protocol", "status", "source"} < set(table.rows.columns)
    assert table.rows.null_count().transpose().sum().item() == 0


def test_the_paper_and_the_anchors_are_there() -> None:
    values = {
        (claim.topic, claim.split, claim.value)
        for claim in KNOWN.claims.values()
        if claim.status == "standing"
    }
    for row in (
        ("librispeech", "test-clean", 2.42), ("librispeech", "test-clean", 3.26), ("librispeech", "test-clean", 5.69),
        ("librispeech", "test-other", 3.91), ("aishell", "test", 0.51), ("aishell", "iOS test", 2.5),
        ("clothoaqa", "test", 52.35), ("experts", "test-clean", 6.22),
    ):  # fmt: skip
        assert row in values


def test_unknown_topic() -> None:
    with pytest.raises(ConfigError, match="topic: found 'speeed'; legal: librispeech"):
        claims.table("speeed")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("source: rwkv}", "source: nowhere}", "rwkv-clean.source: found 'nowhere'"),
        ("against: whisper-clean,", "against: whisper-dirty,", "readme-whisper-wer.against: found 'whisper-dirty'"),
        ("id: kimi-other", "id: kimi-clean", "claim kimi-clean: found twice"),
        ("value: 4.6, source: rwkv", "source: rwkv", "rwkv-clean.value"),
        (", against: whisper-clean, note: \"2.7", ", note: \"2.7", "contradicted, but by nothing"),
        (", note: \"2.42 since commit 0ad9e4b\"}", "}", "readme-wer.note: found null"),
        ("num_experts: 8, router", "experts: 8, router", "sections.steering.num_experts"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_by_row_and_key(old: str, new: str, line: str) -> None:
    assert old in TEXT
    with pytest.raises(ConfigError) as caught:
        claims.parse(TEXT.replace(old, new, 1))
    assert any(line in found for found in caught.value.lines), caught.value.lines


def test_ids_name_one_claim_each() -> None:
    tree = YAML(typ="safe").load(TEXT)
    assert sum(len(table["claims"]) for table in tree["tables"]) == len(KNOWN.claims)


def test_the_file_is_packaged() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"steermoe.analysis" = ["claims.yaml"]' in text


def test_rows_are_a_frame_of_their_own() -> None:
    assert claims.table("librispeech").rows.schema["value"] == pl.Float64
