"""Pictures of the demo page for docs/pictures, taken in a headless Chromium: `python docs/demo_screenshots.py`."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/pictures"
SIZES = {"demo": (1200, 900), "demo-phone": (390, 844)}  # name of the picture -> width and height of the page
EXAMPLE = "heavy dog"  # noisy, and the methods differ on it
TURNED = {"0": 3.0, "3": 3.0}  # layer -> strength
PATIENCE = 120_000  # ms
MOST = 300_000  # bytes of a picture


def use(page: Page) -> None:
    """Take an example, turn strengths, and ask."""
    page.get_by_role("button", name=EXAMPLE).click()
    page.locator("#heard .name").nth(3).wait_for()
    for layer, strength in TURNED.items():
        page.locator(f"#at-{layer} input[type=range]").fill(str(strength))
        page.wait_for_timeout(3000)  # the picture follows
    page.get_by_role("button", name="Ask").click()
    page.locator("#answers .name").nth(2).wait_for()
    page.mouse.click(2, 2)
    page.wait_for_timeout(1000)


def main() -> None:
    """Write a picture of each of SIZES.

    Raises:
        RuntimeError: the page does not come, or a picture is too large.
    """
    command = [sys.executable, "-m", "steermoe.cli.main", "demo", "--model", "mini", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stderr is not None
        found = next((f for line in process.stderr if (f := re.search(r"at (http\S+)", line))), None)
        if found is None:
            raise RuntimeError("the demo did not start")
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        with sync_playwright() as engine:
            browser = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for name, (width, height) in SIZES.items():
                page = browser.new_page(viewport={"width": width, "height": height})
                page.set_default_timeout(PATIENCE)
                page.goto(found[1])
                use(page)
                path = FOLDER / f"{name}.png"
                page.screenshot(path=path, full_page=True)
                if path.stat().st_size > MOST:
                    raise RuntimeError(f"{path}: {path.stat().st_size} bytes; at most {MOST} are wanted")
            browser.close()
    finally:
        process.terminate()
        process.communicate()


if __name__ == "__main__":
    main()
