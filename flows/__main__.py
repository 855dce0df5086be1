"""`python -m flows start | stop | worker`: Prefect for this project, on this machine."""

import argparse
import os
import sys
from pathlib import Path

ROOT_SETTING = "STEERMOE_ROOT"  # of prefect.yaml: the folder in which flows run
POOL = "steermoe"  # of prefect.yaml


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows", description=__doc__)
    parser.add_argument("action", choices=["start", "stop", "worker"])
    parser.add_argument(
        "--pool", default=POOL, help="work pool, of `worker`; `start` takes that of prefect.yaml"
    )
    parser.add_argument("--join", action="store_true", help="share the work pool of another clone")
    given = parser.parse_args()
    if given.action == "stop" and given.join:
        parser.error("--join has no effect on stop")
    if given.action != "worker" and given.pool != POOL:
        parser.error(f"--pool {given.pool} has no effect on {given.action}: prefect.yaml names the pool")
    root = Path.cwd()
    os.environ[ROOT_SETTING] = str(root)
    try:
        if given.action == "worker":
            from flows import worker

            return worker.work(root, given.pool, given.join)
        from flows import service

        return service.start(root, given.pool, given.join) if given.action == "start" else service.stop(root)
    except ImportError as error:
        print(
            f"flows {given.action}: {error}; `make setup` or pip install 'steermoe[flows]'", file=sys.stderr
        )
        return 1
    except (RuntimeError, OSError) as error:
        print(f"flows {given.action}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
