"""Measurements of speed and memory, each a script: `python -m benchmarks.NAME`."""

import steermoe  # noqa: F401  before any library: it switches their usage data off
