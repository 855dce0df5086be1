"""What a run found, where one looks for it in Prefect: the table and the pictures of the comparison."""

import base64
import re
from pathlib import Path

from prefect.artifacts import create_image_artifact, create_markdown_artifact

COMPARISON = "reports/{profile}/comparison"  # output of stage `ablate`
PICTURE = re.compile(r"^!\[[^]]*\]\([^)]*\)\s*$", re.MULTILINE)


def publish(folder: Path, profile: str, experiment: str) -> None:
    """Put report and pictures of a checkout in which `ablate` ran into Prefect, as artifacts of the present run.

    The pictures are data URLs: the page shows them without a file server, and when the checkout is gone.
    """
    comparison = folder / COMPARISON.format(profile=profile)
    report = PICTURE.sub("", (comparison / "report.md").read_text(encoding="utf-8"))
    how = f"In the workspace: `dvc exp apply {experiment}`\n\n"
    create_markdown_artifact(how + report, key="comparison", description=f"comparison of {experiment}")
    for picture in sorted(comparison.glob("*.png")):
        data = base64.b64encode(picture.read_bytes()).decode()
        create_image_artifact(
            f"data:image/png;base64,{data}",
            key=re.sub(r"[^a-z0-9]+", "-", picture.stem.lower()),
            description=f"{picture.stem} of {experiment}",
        )
