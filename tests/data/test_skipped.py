"""A skipped corpus says so in its folder."""

from pathlib import Path

from steermoe.data.skipped import skipped_reason, write_skipped


def test_round_trip(tmp_path: Path):
    folder = tmp_path / "digits"
    assert skipped_reason(folder) is None
    write_skipped(folder, 'no network: "example.org"')
    assert skipped_reason(folder) == 'no network: "example.org"'
    assert [path.name for path in folder.iterdir()] == ["SKIPPED.json"]
