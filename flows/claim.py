"""Whose a work pool is: workers of two clones that share a pool would take each other's runs."""

import re
import subprocess
from pathlib import Path
from uuid import uuid4

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.exceptions import ObjectNotFound

MARK = re.compile(r"\[project (\w+) in (.+)\]")  # in the pool's description
SETTING = "flows.project"  # in the clone's own git configuration, which no other clone gets


def claim(root: Path, pool: str, joins: bool = False) -> None:
    """Mark a work pool as that of the clone in `root`, if nobody's clone has marked it yet.

    Args:
        root: the project's folder.
        pool: name of the pool; one that does not exist is nobody's.
        joins: share the pool of another clone.

    Raises:
        RuntimeError: it is another clone's.
    """
    ours = f"[project {_identity(root)} in {root}]"
    with get_client(sync_client=True) as client:
        try:
            description = client.read_work_pool(pool).description or ""
        except ObjectNotFound:
            return
        found = MARK.search(description)
        if found is None:
            client.update_work_pool(pool, WorkPoolUpdate(description=f"{description}\n{ours}".strip()))
        elif found[0] != ours and not joins:
            raise RuntimeError(
                f"work pool {pool} of {client.api_url} belongs to the project in {found[2]}, and this is {root}: each "
                "would take the other's runs. Give this one a server and a database of its own "
                "(PREFECT_HOME=~/.prefect-2 PREFECT_API_URL=http://127.0.0.1:4201/api make flows), or, for clones of "
                "the same code that share their work, join the pool (make flows JOIN=1). If that folder is gone: "
                f"prefect work-pool delete {pool}"
            )


def _identity(root: Path) -> str:
    """A name of this clone, made up once."""

    def config(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "config", "--local", *words]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)

    found = config("--get", SETTING).stdout.strip()
    if not found:
        found = uuid4().hex[:12]
        done = config(SETTING, found)
        if done.returncode != 0:
            raise RuntimeError(f"{root}: flows need a git repository; {done.stderr.strip()}")
    return found
