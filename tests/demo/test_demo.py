"""The command, and the page in a real browser."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from steermoe.audio.io import RATE, load
from steermoe.cli import demo as demo_command
from steermoe.cli import main as cli
from steermoe.cli import options as opening
from steermoe.demo.app import NO_TEXT, create_page, serving
from steermoe.demo.inference import ALL, Models

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 60_000  # ms; a loaded machine is no fault of the page


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--compare", "a/linear", "--no-compare"], "--no-compare: --compare has no effect"),
        (["--compare", "a/linear", "--compare", "b/linear"], "two adapters called 'linear'"),
        (["--model", "a/one", "--compare", "b/one"], "two adapters called 'one'"),
    ],
)
def test_wrong_use(arguments: list[str], why: str, call: Callable[..., SimpleNamespace]) -> None:
    run = call("demo", *arguments)
    assert run.code == 2 and why in run.err


def test_an_adapter_in_the_current_folder_has_its_name_and_others_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT / "pretrained/adapters/mini/steermoe")
    assert opening.model_name(".") == opening.model_name(None) == "steermoe"
    assert opening.model_name("you/mini") == "mini"
    assert [Path(other).name for other in demo_command.compared_models(".", None)] == ["linear", "lora"]


def test_a_missing_model_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.main(["demo", "--model", "nowhere"]) == 2
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert "nowhere" in capsys.readouterr().err and not list(tmp_path.iterdir())


# the page


@contextmanager
def demo(*arguments: str, temporary: Path, **environment: str) -> Iterator[SimpleNamespace]:
    """`steermoe demo` in a process of its own, ended by SIGTERM."""
    program = [sys.executable, "-m", "steermoe.cli.main", "demo"]
    command = [*program, "--model", "mini", *arguments, "--port", "0"]
    own = {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | own)
    said: list[str] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"at (http://127\.0\.0\.1:\d+)", line):
                break
        else:
            pytest.fail("".join(said))
        yield SimpleNamespace(address=found[1])
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=300)
        assert process.returncode == 0 and "stopped" in rest and "Traceback" not in rest, rest
        assert not list(temporary.glob("steermoe-*"))  # nobody's recordings are left
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def browser(spoken: list[SimpleNamespace], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Its microphone hears the second sentence, again and again."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as engine:
        voice = tmp_path_factory.mktemp("voice") / "voice.wav"
        soundfile.write(voice, spoken[1].samples, RATE)
        fake = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        arguments = ["--no-sandbox", *fake, f"--use-file-for-fake-audio-capture={voice}"]
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def visit(browser: Any, address: str, width: int = 390) -> SimpleNamespace:
    """A visitor's own page; `outside` collects what it requests elsewhere."""
    context = browser.new_context(viewport={"width": width, "height": 844})
    page, outside = context.new_page(), []
    page.set_default_timeout(PATIENCE)
    local = ("data:", "blob:", address)
    page.on("request", lambda request: request.url.startswith(local) or outside.append(request.url))
    page.goto(address)
    page.locator("#heard").wait_for()
    return SimpleNamespace(page=page, outside=outside, context=context)


def reads(page: Any, title: str, text: str) -> None:
    """Wait until this is the text beside a title."""
    name = page.locator("#heard .name").filter(has_text=re.compile(f"^{title}$"))
    name.locator("xpath=following-sibling::div[1]").filter(has_text=re.compile(f"^{text}$")).wait_for()


def text_of(page: Any, title: str) -> str:
    """The text beside a title, once it is there."""
    name = page.locator("#heard .name").filter(has_text=re.compile(f"^{title}$"))
    return name.locator("xpath=following-sibling::div[1]").inner_text()


def turn(page: Any, place: int, value: float) -> None:
    page.locator(f"#at-{place} input[type=range]").fill(str(value))


@pytest.mark.slow
def test_page(browser: Any, spoken: list[SimpleNamespace], mini: Any, tmp_path: Path) -> None:
    models = Models(mini, {})
    (tmp_path / "temporary").mkdir()
    recording, broken, big = tmp_path / "said.flac", tmp_path / "broken.wav", tmp_path / "big.wav"
    long = tmp_path / "long.ogg"
    soundfile.write(recording, spoken[0].samples, RATE)
    heard, _ = soundfile.read(recording, dtype="float32")
    broken.write_bytes(b"RIFF nothing <b>of</b> sound")
    soundfile.write(big, np.zeros(RATE * 40), RATE)
    with demo("--max-mb", "1", temporary=tmp_path / "temporary") as served:
        one = visit(browser, served.address)
        page = one.page
        page.locator("input[type=file]").set_input_files(recording)
        assert text_of(page, "steermoe") == spoken[0].text
        picture = page.locator("#picture img")
        assert spoken[0].text in picture.get_attribute("alt")
        for name in ("steering off", "linear", "lora"):
            assert text_of(page, name)
        before = picture.get_attribute("src")

        # a second visitor's strengths are the second visitor's
        two = visit(browser, served.address, width=1280)
        for place in range(4):
            turn(two.page, place, 3)
        two.page.locator("input[type=file]").set_input_files(recording)
        strong = models.transcribe(heard, {ALL: [3.0] * 4}).text
        assert strong != spoken[0].text
        reads(two.page, "steermoe, experts scaled", strong)
        assert text_of(two.page, "as trained") == spoken[0].text
        assert two.page.locator("#heard mark").count()

        turn(page, 3, -2)
        page.wait_for_function("before => document.querySelector('#picture img').src == before", arg=before)
        turn(page, 0, 4)
        page.wait_for_function("before => document.querySelector('#picture img').src != before", arg=before)
        page.locator("#reset").click()
        assert text_of(page, "steermoe") == spoken[0].text
        page.wait_for_function("before => document.querySelector('#picture img').src == before", arg=before)
        assert page.locator("#at-0 input[type=range]").input_value() == "1"

        page.get_by_label("Question").fill("who was it")
        page.get_by_role("button", name="Ask").click()
        page.locator("#answers .text").nth(2).wait_for()
        assert page.locator("#answers .text").first.inner_text() == mini.ask(heard, "who was it").text

        soundfile.write(long, np.tile(spoken[0].samples, 12), RATE)
        page.get_by_label("Clear").first.click()
        page.locator("input[type=file]").set_input_files(long)
        page.locator("#heard .name").nth(3).wait_for()
        page.locator("#picture img[alt*='over %.1f']" % (12 * len(heard) / RATE)).wait_for()
        for visitor in (one, two):
            wide, screen = visitor.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert wide <= screen
            assert visitor.outside == []

        elsewhere = httpx.get(served.address, headers={"host": "evil.example"}, trust_env=False)
        assert elsewhere.status_code == 400

        page.get_by_label("Clear").first.click()
        page.locator("#heard").filter(has_text=NO_TEXT).wait_for()
        page.get_by_label("Record audio").click()
        page.get_by_role("button", name="Record", exact=True).click()
        page.wait_for_timeout(1000 * len(spoken[1].samples) / RATE + 1500)
        page.get_by_role("button", name="Stop").click()
        page.locator("#heard .name").nth(3).wait_for()  # the last to answer
        recorded = max((tmp_path / "temporary").rglob("*.wav"), key=lambda path: path.stat().st_mtime)
        # a browser without time for its microphone leaves holes: only the page's part is certain
        said = models.transcribe(load(recorded)).text
        assert text_of(page, "steermoe") == said and set(said.split()) & set(spoken[1].text.split())
        page.locator(f"#picture img[alt*='{said}']").wait_for()

        one.context.close()
        page = two.page
        page.get_by_role("button", name="“").first.click()
        text = page.get_by_role("button", name="“").first.inner_text().strip("“”")
        page.locator("#reset").click()
        reads(page, "steermoe", text)
        for file, message in ((broken, "not readable as audio"), (big, "size")):
            page.get_by_label("Clear").first.click()
            page.locator("input[type=file]").set_input_files(file)
            page.get_by_test_id("toast-body").filter(has_text=re.compile(message, re.I)).first.wait_for()
            if file == broken:  # the other never gets as far as that
                page.locator("#heard").filter(has_text="cannot be used").wait_for()
                page.locator("#picture").filter(has_text="comes here").wait_for()  # the one before is gone
        assert page.locator(".toast-body b").count() == 0
        two.context.close()


def test_with_a_password_the_page_asks_for_it(mini: Any, tmp_path: Path) -> None:
    key, page = "correct-horse-battery", create_page(Models(mini, {}), "mini", [])
    with (
        serving(page, "127.0.0.1", 0, key, str(tmp_path), 2**20) as address,
        httpx.Client(base_url=address, trust_env=False) as visitor,
    ):
        assert visitor.get("/config").status_code == 401
        wrong = visitor.post("/login", data={"username": "steermoe", "password": key[:-1]})
        assert wrong.status_code == 400 and visitor.get("/config").status_code == 401
        assert visitor.post("/login", data={"username": "steermoe", "password": key}).status_code == 200
        assert visitor.get("/config").status_code == 200
