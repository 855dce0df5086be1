"""The recipe of the mini base models: speech, encoder, language model."""

import steermoe  # noqa: F401  before any library: it switches their usage data off
