"""How many layers of a frozen model are used."""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from steermoe.config.problems import illegal

DEPTH = "all, or a whole number >= 1: only so many, the first ones"


def _of_layers(depth: Any) -> Any:
    if depth != "all" and (type(depth) is not int or depth < 1):
        raise illegal(DEPTH)
    return depth


Depth = Annotated[Literal["all"] | int, PlainValidator(_of_layers), Field(description=DEPTH)]
