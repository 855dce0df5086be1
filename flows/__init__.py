"""When and where the pipeline runs: Prefect flows over DVC targets. What runs is said in dvc.yaml alone."""

import steermoe  # noqa: F401  before any library: it switches their usage data off
