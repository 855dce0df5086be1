"""The page in a real browser, and what is behind it with the trained mini adapter."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from steermoe.audio.waveform import RATE, AudioError
from steermoe.serving import gate_pictures, transcript_table
from steermoe.serving.limits import Limits
from steermoe.serving.listener import ALL, Listener
from steermoe.serving.transcript import Word
from steermoe.serving.visit import Visit

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 60_000  # ms; a loaded machine is no fault of the page
STRONG = {ALL: [3.0] * 4}


@pytest.fixture(scope="module")
def listener(mini: Any) -> Iterator[Listener]:
    made = Listener(mini, {}, Limits(max_bytes=400_000, max_seconds=8.0, max_text=60))
    yield made
    made.close()


# strengths


def test_strengths_hold_for_one_request(listener: Listener, spoken: list[SimpleNamespace]) -> None:
    samples = spoken[0].samples
    before = listener.see(samples).gates
    strong = listener.see(samples, STRONG).gates
    assert not np.allclose(before[3], strong[3], equal_nan=True)
    assert all(
        np.array_equal(*both, equal_nan=True)
        for both in zip(before, listener.see(samples).gates, strict=True)
    )


def test_strengths_are_undone_after_an_error(listener: Listener, spoken: list[SimpleNamespace]) -> None:
    assert listener.model.steering is not None
    with pytest.raises(ValueError, match="found 3, the model has 4 steered places"):
        listener.transcript(spoken[0].samples, {ALL: [2.0] * 4, 0: [0.0] * 3})
    assert (listener.model.steering.strengths == 1).all()


def test_an_experts_strength_counts_times_that_of_all(listener: Listener) -> None:
    steering = listener.model.steering
    assert steering is not None
    with listener._steered({ALL: [1.0, 2.0, 1.0, 1.0], 5: [1.0, -1.5, 1.0, 0.0]}):
        found = steering.strengths.reshape(4, 8).clone()
    expected = np.ones((4, 8), np.float32)
    expected[1] = 2
    expected[1, 5], expected[3, 5] = -3, 0
    assert np.array_equal(found.numpy(), expected)


def test_visitors_do_not_disturb_each_other(listener: Listener, spoken: list[SimpleNamespace]) -> None:
    samples = spoken[0].samples
    alone = [listener.transcript(samples, strengths).text for strengths in ({}, STRONG)]
    assert alone[0] == spoken[0].text != alone[1]
    found: dict[int, list[str]] = {0: [], 1: []}

    def visit(number: int) -> None:
        for _ in range(4):
            found[number].append(listener.transcript(samples, STRONG if number else {}).text)

    visitors = [threading.Thread(target=visit, args=(number,)) for number in found]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert found == {0: [alone[0]] * 4, 1: [alone[1]] * 4}


def test_others_are_named(mini: Any, spoken: list[SimpleNamespace]) -> None:
    both = Listener(mini, {"again": mini}, Limits())
    samples = spoken[0].samples
    assert dict(both.others_heard(samples))["again"] == both.transcript(samples).text
    assert [name for name, _ in both.others_heard(samples)] == ["steering off", "again"]
    with mini.steering.disabled():
        assert dict(both.others_heard(samples))["steering off"] == both.transcript(samples).text
    answers = dict(both.answers(samples, " who was it "))
    assert answers[""] == answers["again"] == mini.transcribe(samples, question="who was it")


# what is seen


def test_gates_are_those_of_the_model(listener: Listener, mini: Any, talk: np.ndarray) -> None:
    seen = listener.see(talk)
    assert seen.places == ["0", "1", "2", "3"] and len(seen.gates[0]) == round(seen.seconds * 50)
    for gates in seen.gates:
        silent = np.isnan(gates).any(1)
        assert 0.05 < silent.mean() < 0.6  # the pauses between sentences
        assert np.isnan(gates[silent]).all()
        assert np.allclose(gates[~silent].sum(1), 1, atol=1e-5)
    starts = np.flatnonzero(np.diff(np.isnan(seen.gates[0][:, 0]).astype(int)) == -1) + 1
    first, second = (starts[0], starts[1]) if np.isnan(seen.gates[0][0, 0]) else (0, starts[0])
    last = first + int(np.isnan(seen.gates[0][first:second, 0]).argmax())
    samples = talk[int(first / 50 * RATE) : int(last / 50 * RATE)]
    same = np.mean(mini.gates(samples)[3].argmax(1) == seen.gates[3][first:last].argmax(1))
    assert same > 0.9  # cut a little elsewhere


def test_picture_shows_the_strongest_expert() -> None:
    colours = gate_pictures.expert_colours(3)
    gates = np.array([[0, 1, 0], [0.2, 0.2, 0.6], [np.nan] * 3], np.float32)
    shown = gate_pictures.strongest(gates, colours)
    assert np.allclose(shown[0], colours[1]) and np.allclose(shown[2], 1)
    assert np.allclose(1 - shown[1], 0.6 * (1 - np.array(colours[2])))
    assert all(len(set(gate_pictures.expert_colours(count))) == count for count in (1, 9, 10, 20, 64))


def test_picture_changes_with_strengths_and_place(listener: Listener, spoken: list[SimpleNamespace]) -> None:
    samples, words = spoken[0].samples, [Word("one", 0.1, 0.3), Word("<b>", 0.5, 0.6)]
    seen = listener.see(samples)
    pictures = [gate_pictures.steering_picture(seen, words, 3), gate_pictures.steering_picture(seen, words, 0),
                gate_pictures.steering_picture(listener.see(samples, STRONG), words, 3)]  # fmt: skip
    assert len(set(pictures)) == 3 and all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert gate_pictures.steering_picture(seen, words, 3) == pictures[0]


def test_silence_is_neither_written_nor_drawn(listener: Listener) -> None:
    silence = np.zeros(RATE, np.float32)
    seen = listener.see(silence)
    assert listener.transcript(silence).text == "" and all(np.isnan(gates).all() for gates in seen.gates)
    assert gate_pictures.steering_picture(seen, [], 0).startswith(b"\x89PNG")


# limits


def test_recordings_beyond_the_limits_are_refused(listener: Listener, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 9 * RATE).astype(np.float32)
    soundfile.write(tmp_path / "long.flac", noise[: 9 * RATE] * 0, RATE)
    with pytest.raises(AudioError, match=r"9\.0 s"):
        listener.load(tmp_path / "long.flac")
    soundfile.write(tmp_path / "big.wav", noise, 48_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"big\.wav: found 0\.5 MiB; a recording may have 0\.4"):
        listener.load(tmp_path / "big.wav")
    (tmp_path / "text.wav").write_text("this is no sound")
    with pytest.raises(AudioError, match="not readable as audio"):
        listener.load(tmp_path / "text.wav")


def test_a_comparison_that_comes_too_late_shows_nothing(listener: Listener, tmp_path: Path) -> None:
    """Its recording was replaced while it waited for its turn."""
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    assert list(Visit(listener, "mini").compare(str(tmp_path / "a.wav"), {}, {})) == []


def test_a_recording_that_was_taken_away_is_not_heard(listener: Listener) -> None:
    visit = Visit(listener, "mini")
    heard, texts, words = visit.hear(None, {})
    assert "comes here" in heard and (texts, words) == ({}, [])
    assert list(visit.compare(None, {}, texts)) == []


def test_nothing_that_was_said_is_markup() -> None:
    shown = transcript_table.table([("<i>", "one <b> two", None), ("x", "one <s> two", "one <b> two")])
    assert "<i>" not in shown and "<b> two" not in shown and "one &lt;b&gt; two" in shown
    assert "one <mark>&lt;s&gt;</mark> two" in shown


def test_questions_beyond_the_limits_are_refused(listener: Listener, spoken: list[SimpleNamespace]) -> None:
    for question, why in ((" ", "no question"), ("who " * 20, "80 characters; legal: 60")):
        with pytest.raises(ValueError, match=why):
            list(listener.answers(spoken[0].samples, question))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--compare", "a/linear", "--no-compare"], "--no-compare: --compare has no effect"),
        (["--compare", "a/linear", "--compare", "b/linear"], "two adapters called 'linear'"),
        (["--model", "a/one", "--compare", "b/one"], "two adapters called 'one'"),
    ],
)
def test_wrong_use_is_told(arguments: list[str], why: str, call: Callable[..., SimpleNamespace]) -> None:
    run = call("demo", *arguments)
    assert run.code == 2 and why in run.err


def test_a_model_that_is_not_there_leaves_nothing_behind(tmp_path: Path) -> None:
    arguments = ["--model", "nowhere"]
    command = [sys.executable, "-m", "steermoe.serving.cli", "demo", *arguments]
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert run.returncode == 2 and "nowhere" in run.stderr and not list(tmp_path.glob("steermoe-*"))


# the page


@contextmanager
def demo(
    *arguments: str, temporary: Path, place: Path = ROOT, **environment: str
) -> Iterator[SimpleNamespace]:
    """`steermoe demo` in a process of its own, ended by SIGTERM."""
    command = [sys.executable, "-m", "steermoe.serving.cli", "demo", *arguments, "--port", "0"]
    own = {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    process = subprocess.Popen(command, cwd=place, stderr=subprocess.PIPE, text=True, env=os.environ | own)
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
        _, rest = process.communicate(timeout=60)
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
def test_page(
    browser: Any, spoken: list[SimpleNamespace], mini: Any, listener: Listener, tmp_path: Path
) -> None:
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
        strong = listener.transcript(heard, STRONG).text
        assert strong != spoken[0].text
        reads(two.page, "steermoe, strengths as set", strong)
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
        assert page.locator("#answers .text").first.inner_text() == mini.transcribe(
            heard, question="who was it"
        )

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
        page.get_by_label("Record audio").click()
        page.get_by_role("button", name="Record", exact=True).click()
        page.wait_for_timeout(1000 * len(spoken[1].samples) / RATE + 1500)
        page.get_by_role("button", name="Stop").click()
        end = " ".join(spoken[1].text.split()[-2:])  # is heard whenever the recording began
        page.locator(f"#picture img[alt*='{end}']").wait_for()

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
        assert page.locator(".toast-body b").count() == 0
        two.context.close()


@pytest.mark.slow
def test_second_command_of_the_page_on_it(
    browser: Any, spoken: list[SimpleNamespace], tmp_path: Path
) -> None:
    """As it stands there, but for the port, which may be taken; the shipped adapters are those of models/mini."""
    page = (ROOT / "docs/demo.md").read_text()
    first, second = re.findall(r"^steermoe demo.*$", page, re.MULTILINE)
    assert first == "steermoe demo"  # what the other tests begin with
    place, temporary, recording = tmp_path / "place", tmp_path / "temporary", tmp_path / "said.flac"
    temporary.mkdir()
    (place / "models").mkdir(parents=True)
    (place / "models/mini").symlink_to(ROOT / "pretrained/adapters")
    (place / "pretrained").symlink_to(ROOT / "pretrained")
    soundfile.write(recording, spoken[0].samples, RATE)
    with demo(*shlex.split(second)[2:], temporary=temporary, place=place) as served:
        one = visit(browser, served.address)
        one.page.locator("input[type=file]").set_input_files(recording)
        assert text_of(one.page, "steermoe") == spoken[0].text
        assert all(text_of(one.page, name) for name in ("steering off", "linear", "lora"))
        one.context.close()


@pytest.mark.slow
def test_with_a_key_the_page_asks_for_it(tmp_path: Path) -> None:
    key = "correct-horse-battery"
    with (
        demo("--no-compare", temporary=tmp_path, STEERMOE_API_KEY=key) as served,
        httpx.Client(base_url=served.address, trust_env=False) as visitor,
    ):
        assert visitor.get("/config").status_code == 401
        wrong = visitor.post("/login", data={"username": "steermoe", "password": key[:-1]})
        assert wrong.status_code == 400 and visitor.get("/config").status_code == 401
        assert visitor.post("/login", data={"username": "steermoe", "password": key}).status_code == 200
        assert visitor.get("/config").status_code == 200
