"""SteerMoE: a frozen speech encoder, steered layer by layer so that a frozen LLM understands it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steermoe.models.steermoe import SteerMoE

__all__ = ["SteerMoE", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`SteerMoE`, imported when first asked for: it takes seconds, and most commands do without."""
    if name == "SteerMoE":
        from steermoe.models.steermoe import SteerMoE

        return SteerMoE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
