"""Journals as a power cut leaves them."""

from steermoe.training.journal import ENTRIES, Journal


def test_a_broken_line_holds_up_nothing(tmp_path):
    journal = Journal.begin(tmp_path)
    journal.append({"do": "tags", "tags": {"a": "1"}})
    journal.close(remove=False)
    path = journal.folder / ENTRIES
    path.write_bytes(path.read_bytes() + b"\0" * 40 + b"\n" + b'{"do": "tags"}\n{"do": "ta')
    [found] = Journal.left_behind(tmp_path)
    assert found.pending() == [{"do": "tags", "tags": {"a": "1"}}, {"do": "tags"}]
    found.close(remove=True)
