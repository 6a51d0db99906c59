"""The page in a real browser: a recorded microphone is heard and the portrait moves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
VOICE = PROJECT / "liveavatar" / "mini" / "assets" / "voice.wav"
playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright (tests/live/README.md)")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"needs Chromium at {CHROMIUM} (tests/live/README.md)"),
]
SECONDS = 120_000


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "liveavatar", "live", "--port", "0"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield next(line.split()[1] for line in process.stdout if line.startswith("page "))
        process.terminate()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        arguments = [
            "--no-sandbox",
            "--disable-gpu",
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={VOICE}",
            "--autoplay-policy=no-user-gesture-required",
        ]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    page = chromium.new_page(locale=getattr(request, "param", "en-US"), viewport={"width": 1000, "height": 560})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#start:not([disabled])")
    yield page
    page.close()
    assert not errors


def played(page: Any) -> float:
    return float(page.evaluate("document.getElementById('video').currentTime"))


def test_a_microphone_is_heard_and_the_recording_can_be_kept(page: Any, tmp_path: Path) -> None:
    page.click("#start")
    page.wait_for_selector("#microphone:not([disabled])", timeout=SECONDS)
    page.click("#microphone")
    page.wait_for_function("document.getElementById('video').currentTime > 1", timeout=SECONDS)
    page.wait_for_function("/talking|slow/.test(document.getElementById('state').textContent)", timeout=SECONDS)
    assert re.fullmatch(r"\d+\.\d\d s", page.inner_text("#delay"))
    page.click("#interrupt")
    page.click("#start")
    page.wait_for_selector("#download:not([hidden])", timeout=SECONDS)
    with page.expect_download() as download:
        page.click("#download")
    kept = tmp_path / "recording.mp4"
    download.value.save_as(kept)
    import av

    with av.open(str(kept)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) >= 24


def test_the_page_watches_over_webrtc_and_goes_back_to_the_socket(page: Any, tmp_path: Path) -> None:
    if page.is_hidden("#webrtc-row"):
        pytest.skip("the server lacks the package aiortc (the extra live)")
    watched = "document.getElementById('video').srcObject?.getTracks().length === 2"
    page.check("#webrtc")
    page.click("#start")
    page.wait_for_selector("#microphone:not([disabled])", timeout=SECONDS)
    page.click("#microphone")
    page.wait_for_function(f"{watched} && document.getElementById('video').currentTime > 1", timeout=SECONDS)
    assert page.evaluate("document.getElementById('video').videoWidth") > 0
    page.wait_for_function("/talking|slow/.test(document.getElementById('state').textContent)", timeout=SECONDS)
    assert re.fullmatch(r"\d+\.\d\d s", page.inner_text("#delay"))
    page.uncheck("#webrtc")
    page.wait_for_function("!document.getElementById('video').srcObject", timeout=SECONDS)
    begun = played(page)
    page.wait_for_function(f"document.getElementById('video').currentTime != {begun}", timeout=SECONDS)
    page.check("#webrtc")
    page.wait_for_function(watched, timeout=SECONDS)
    page.wait_for_timeout(3000)
    page.click("#start")
    page.wait_for_selector("#download:not([hidden])", timeout=SECONDS)
    page.wait_for_timeout(500)
    with page.expect_download() as download:
        page.click("#download")
    kept = tmp_path / download.value.suggested_filename
    download.value.save_as(kept)
    import av

    with av.open(str(kept)) as container:
        assert any(packet.size for packet in container.demux(video=0))
        assert container.streams.audio


def test_stop_talking_also_stops_a_sound_file_which_may_be_chosen_again(page: Any, tmp_path: Path) -> None:
    long = tmp_path / "long.wav"
    with wave.open(str(VOICE)) as short, wave.open(str(long), "wb") as file:
        file.setparams(short.getparams())
        file.writeframes(5 * short.readframes(short.getnframes()))
    page.click("#start")
    page.wait_for_selector("#microphone:not([disabled])", timeout=SECONDS)
    for _ in range(2):
        page.set_input_files("#sound", long)
        page.wait_for_function("parseFloat(document.getElementById('queued').textContent) > 5", timeout=SECONDS)
        page.click("#interrupt")
        page.wait_for_function("parseFloat(document.getElementById('queued').textContent) < 0.5", timeout=SECONDS)
        page.wait_for_timeout(3500)
        assert page.inner_text("#queued") == "0.0 s", "no more of it is handed over"
    page.click("#start")
    page.wait_for_selector("#download:not([hidden])", timeout=SECONDS)


@pytest.mark.parametrize("page", ["zh-CN"], indirect=True)
def test_the_page_speaks_chinese(page: Any) -> None:
    assert page.inner_text("#start") == "开始"
    assert page.evaluate("document.documentElement.lang") == "zh"


def test_a_second_tab_is_told_to_wait(page: Any, chromium: Any, address: str) -> None:
    page.click("#start")
    page.wait_for_selector("#microphone:not([disabled])", timeout=SECONDS)
    other = chromium.new_page(locale="en-US")
    other.goto(address)
    other.click("#start:not([disabled])")
    other.wait_for_function("document.getElementById('message').textContent.includes('number 1')", timeout=SECONDS)
    page.click("#start")
    other.wait_for_selector("#microphone:not([disabled])", timeout=SECONDS)
    other.click("#start")
    other.wait_for_selector("#download:not([hidden])", timeout=SECONDS)
    other.close()
