"""The recipe of the mini base models: speech, encoder, language model."""

import steermoe  # noqa: F401  before any library: it switches their usage data off

# In the models' config.json: shown wherever an adapter over one of them is used.
NOTICE = "the mini models know 158 words of synthetic English: do not expect them to understand people"
