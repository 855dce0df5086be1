"""Placement: which layers are steered, how many experts each has, and where inside the layer it happens."""

from dataclasses import dataclass

from steermoe import config


@dataclass(frozen=True)
class Place:
    """A place that is steered.

    Attributes:
        layer: its number in the encoder, or None for after the encoder.
        experts: how many vectors it has.
    """

    layer: int | None
    experts: int

    def __str__(self) -> str:
        return "post" if self.layer is None else str(self.layer)


def places(section: config.Steering, layers: int) -> list[Place]:
    """The steered places, in the order in which a frame meets them.

    Args:
        section: the configuration of steering.
        layers: how many the encoder has.

    Raises:
        ValueError: the section names a layer that the encoder does not have, or gives another number of
            numbers of experts than there are places.
    """
    chosen: list[int | None] = [*_numbers(section.layers, layers)]
    if section.post_encoder:
        chosen.append(None)
    experts = section.num_experts
    if isinstance(experts, int):
        experts = [experts] * len(chosen)
    if len(experts) != len(chosen):
        raise ValueError(
            f"steering.num_experts: found {len(experts)} numbers, but {len(chosen)} places are steered: "
            f"{', '.join(str(Place(layer, 0)) for layer in chosen)}; give one number, or one for each"
        )
    return [Place(layer, count) for layer, count in zip(chosen, experts, strict=True)]


def _numbers(choice: str | list[int], available: int) -> list[int]:
    if isinstance(choice, list):
        wrong = [number for number in choice if not 0 <= number < available]
        if wrong:
            raise ValueError(f"steering.layers: found {wrong}, the encoder has layers 0 to {available - 1}")
        return sorted(choice)
    if choice in ("all", "none"):
        return list(range(available)) if choice == "all" else []
    kind, number = choice.split("-")
    if int(number) >= available:
        raise ValueError(f"steering.layers: found {choice!r}, the encoder has {available} layers; use all")
    numbers = list(range(available))
    match kind:
        case "every":
            return numbers[int(number) - 1 :: int(number)]
        case "first":
            return numbers[: int(number)]
        case _:
            return numbers[-int(number) :]
