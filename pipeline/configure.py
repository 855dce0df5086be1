"""Resolve one arm: everything its training depends on, and nothing else, in one JSON file."""

from pathlib import Path

from pipeline.options import Out, Params


def main(arm: str, out: Out, params: Params = Path("params.yaml")) -> None:
    """Write the resolved configuration of ARM to OUT."""
    from steermoe import config
    from steermoe.data.staging import write_text

    write_text(out, config.load(params).arm(arm).to_json())
