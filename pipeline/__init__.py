"""The stages of `dvc.yaml`: read the configuration, call the library, write the outputs."""

import steermoe  # noqa: F401  before any library: it switches their usage data off
