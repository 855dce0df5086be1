import torch
from hypothesis import given
from hypothesis import strategies as st

from steermoe.models.packing import pack, target_rows

ROW = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(0, 5))


def right_padded(rows: list[torch.Tensor], width: int) -> torch.Tensor:
    return torch.stack([torch.cat([row, torch.full((width - len(row), 1), -1.0)]) for row in rows])


@given(st.lists(ROW, min_size=1, max_size=5), st.integers(0, 2))
def test_rows_are_joined_without_gaps(lengths: list[tuple[int, ...]], excess: int) -> None:
    values = iter(range(1000))
    rows = [
        [torch.tensor([[float(next(values))] for _ in range(n)]).view(-1, 1) for n in row] for row in lengths
    ]
    parts = [right_padded(list(part), max(map(len, part)) + excess) for part in zip(*rows, strict=True)]
    counts = [torch.tensor(part) for part in zip(*lengths, strict=True)]
    expected = [torch.cat(row) for row in rows]
    width = max(map(len, expected))
    for side in ("left", "right"):
        packed, valid = pack(parts, counts, side)
        assert packed.shape == (len(rows), width, 1)
        for row, whole in enumerate(expected):
            assert torch.equal(packed[row][valid[row]], whole)
            mask = [True] * len(whole) + [False] * (width - len(whole))
            assert valid[row].tolist() == (mask if side == "right" else mask[::-1])


def test_targets_are_predicted_by_what_stands_before_them() -> None:
    before, lengths = torch.tensor([5, 3]), torch.tensor([2, 3])
    rows, columns = target_rows(before, lengths, 4)
    assert rows.tolist() == [0, 0, 1, 1, 1]
    assert columns.tolist() == [4, 5, 2, 3, 4]
