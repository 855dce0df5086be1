from collections.abc import Callable
from typing import Any

import pytest

from steermoe.models.gating import hook_points

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("layers", "post", "expected"),
    [
        ("all", False, [0, 1, 2, 3, 4, 5]),
        ("all", True, [0, 1, 2, 3, 4, 5, None]),
        ("none", True, [None]),
        ("every-2", False, [1, 3, 5]),
        ("every-4", False, [3]),
        ("first-2", False, [0, 1]),
        ("last-2", True, [4, 5, None]),
        ([3, 1], False, [1, 3]),
    ],
)
def test_places_are_in_the_order_of_the_frames(
    make_steering: Make, layers: Any, post: bool, expected: list[int | None]
) -> None:
    found = hook_points(make_steering(layers=layers, post_encoder=post), 6)
    assert [place.layer for place in found] == expected
    assert {place.experts for place in found} == {4}


def test_each_place_may_have_its_own_number_of_experts(make_steering: Make) -> None:
    section = make_steering(layers="last-2", post_encoder=True, num_experts=[2, 4, 8])
    assert [(str(place), place.experts) for place in hook_points(section, 6)] == [
        ("4", 2),
        ("5", 4),
        ("post", 8),
    ]
    with pytest.raises(
        ValueError, match=r"num_experts: found 3 numbers, but 2 places are steered: 1, 2; give"
    ):
        hook_points(make_steering(layers=[1, 2], num_experts=[2, 4, 8]), 6)


def test_layers_that_do_not_exist_are_named(make_steering: Make) -> None:
    with pytest.raises(ValueError, match=r"steering\.layers: found \[6\], the encoder has layers 0 to 5"):
        hook_points(make_steering(layers=[1, 6]), 6)
    with pytest.raises(
        ValueError, match=r"steering\.layers: found 'first-6', the encoder has 6 layers; use all"
    ):
        hook_points(make_steering(layers="first-6"), 6)
