"""Pictures of MLflow's pages for docs/mlflow.md, taken of a real server in a real browser.

    python docs/screenshots.py --profile mini

Starts `mlflow ui` on the project's store, or on another one, looks at three pages of the experiment
`steermoe/<profile>` with Chromium, and writes runs.png (the table of runs), curves.png (learning curves of the
variants of the newest execution) and run.png (the page of one of them) into docs/pictures. Needs `pip install -e
.[dev]` and a Chromium of the system.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from playwright.sync_api import Page, sync_playwright

from steermoe.training.mlflow_store import sqlite_address

ROOT = Path(__file__).parents[1]
ASSISTANT = '[data-component-id="mlflow.assistant.chat_panel.close"]'  # a panel that stands open at first
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser_path() -> str | None:
    """Where the system's Chromium is; None without one."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def served(store: str, seconds: float = 120) -> Iterator[str]:
    """The address of `mlflow ui` on a store, as long as the context lasts.

    Raises:
        RuntimeError: it does not answer within `seconds`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", store,
    ]  # fmt: skip
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True
        )
        try:
            until = time.monotonic() + seconds
            while not _answers(address):
                if time.monotonic() > until or server.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"mlflow ui does not answer:\n{log.read()[-2000:]}")
                time.sleep(0.3)
            yield address
        finally:
            os.killpg(server.pid, 15)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, 9)
                server.wait()


def _answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=2).ok
    except requests.RequestException:
        return False


@contextmanager
def browsing() -> Iterator[Page]:
    """A page of the system's Chromium.

    Raises:
        FileNotFoundError: the system has none.
    """
    path = browser_path()
    if path is None:
        raise FileNotFoundError(f"no Chromium here; looked for {', '.join(BROWSERS)} on PATH")
    with sync_playwright() as playwright:
        # As root, Chromium needs its sandbox off; it opens nothing here but the server on this machine.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1360, "height": 800})
            page.route(lambda url: not url.startswith("http://127.0.0.1:"), lambda route: route.abort())
            yield page
        finally:
            browser.close()


def runs_of(store: str, profile: str) -> tuple[str, list[Run]]:
    """The experiment's id, and the newest execution's runs: itself, then its variants.

    Raises:
        ValueError: there is no such experiment, or nothing in it.
    """
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(f"steermoe/{profile}")
    if experiment is None:
        raise ValueError(f"{store}: no experiment steermoe/{profile}; run `dvc repro` first")
    place = experiment.experiment_id
    executions = client.search_runs([place], "tags.`steermoe.kind` = 'execution'", max_results=1)
    if not executions:
        raise ValueError(f"{store}: no runs in steermoe/{profile}; run `dvc repro` first")
    parent = executions[0].info.run_id
    variants = client.search_runs([place], f"tags.`mlflow.parentRunId` = '{parent}'")
    return place, [*executions, *reversed(variants)]


def look(page: Page, address: str, names: Sequence[str], path: Path | None) -> str:
    """Open a page, wait until all `names` are on it and a little longer, and take its picture; its text."""
    page.goto(address)
    first = page.get_by_text(names[0], exact=True).first
    first.wait_for(timeout=90_000)
    panel = page.locator(ASSISTANT)
    if panel.count():
        panel.first.click()
    page.wait_for_timeout(2000)
    place = first.bounding_box()
    if place is not None and not page.get_by_text(names[-1], exact=True).count():
        page.mouse.click(
            place["x"] - 32, place["y"] + place["height"] / 2
        )  # unfolds the variants of the execution
    for name in names:
        page.get_by_text(name, exact=True).first.wait_for(timeout=90_000)
    page.wait_for_timeout(4000)  # the page asks the server again and again, so that the network is never idle
    if path is not None:
        page.screenshot(path=path, timeout=120_000)
    return page.inner_text("body")


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--store", default=sqlite_address(ROOT / "mlflow.db"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    experiment, runs = runs_of(options.store, options.profile)
    names = [str(run.info.run_name) for run in runs]
    with served(options.store) as address, browsing() as page:
        base = f"{address}/#/experiments/{experiment}/runs"
        look(page, base, names, options.out / "runs.png")
        look(page, f"{base}?compareRunsMode=CHART", names, options.out / "curves.png")
        look(page, f"{base}/{runs[-1].info.run_id}", names[-1:], options.out / "run.png")


if __name__ == "__main__":
    main()
