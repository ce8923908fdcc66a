"""A visitor's recording on the page: a file, or from a camera and a microphone (Chromium's fake
ones).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.media.clips import plain, tone, with_face, write_clip
from tests.serve.browser import Page, browsing
from tests.serve.running import Running, running

CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
TEXT = "I love this"
# The number of the outline's pixels that are drawn over the video.
DRAWN = """
const canvas = document.getElementById("overlay");
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
return pixels.filter((value, index) => index % 4 === 3 && value > 0).length;
"""


@pytest.fixture(scope="module")
def service(recordings_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(
        recordings_run, tmp_path_factory.mktemp("log") / "log", "--max-clip-seconds", "20"
    ) as started:
        yield started


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with browsing(tmp_path_factory.mktemp("profile"), *CAMERA) as browser:
        yield browser


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a second with a face and a second without."""
    pictures = [with_face()] * 10 + [plain(100)] * 10
    return write_clip(tmp_path_factory.mktemp("clip") / "mine.webm", pictures, tone(2.0))


class Visit(Page):
    """A visitor's view of the page with a recording."""

    def choose(self, path: Path) -> None:
        self.find("#clip-file").send_keys(str(path))
        self.wait(lambda: self.message.startswith(f"{path.name}: the student predicts"))

    def strip(self, modality: int) -> tuple[int, int]:
        """Return how many frames are drawn as present, and as missing."""
        strip = self.browser.find_elements(By.CSS_SELECTOR, "#timeline svg")[modality]
        return tuple(
            len(strip.find_elements(By.CSS_SELECTOR, f".{kind}")) for kind in ("there", "missing")
        )  # type: ignore[return-value]

    def reasons(self) -> list[str]:
        return self.texts("#timeline .why")


@pytest.fixture
def page(chromium: webdriver.Chrome, service: Running) -> Visit:
    opened = Visit(chromium, service.url)
    opened.wait(
        lambda: (
            opened.find("#recording").is_displayed() and "the student predicts" in opened.message
        )
    )
    return opened


def test_a_recording_is_shown_while_it_plays(page: Visit, clip: Path) -> None:
    page.find("#transcript").send_keys(TEXT)
    page.choose(clip)
    assert page.texts("#words span") == TEXT.split()
    assert page.strip(0) == (3, 0)
    assert page.strip(2)[0] == pytest.approx(10, abs=1)
    assert page.strip(2)[1] == pytest.approx(10, abs=1)
    assert page.reasons()[2].startswith("no face in ")
    assert page.texts("#card-student h4") == [
        f"What each modality adds to “{page.find('#card-student .verdict').text}”"
    ]
    page.browser.execute_script("seek(0.5)")
    page.wait(lambda: page.browser.execute_script(DRAWN) > 100)
    assert page.find("#words .now").text == "love"
    page.browser.execute_script("seek(1.7)")
    page.wait(lambda: page.browser.execute_script(DRAWN) == 0)
    page.find("#moment").send_keys(Keys.HOME)
    page.wait(lambda: page.browser.execute_script(DRAWN) > 100)
    page.browser.execute_script("document.getElementById('video').play()")
    page.wait(lambda: float(page.find("#moment").get_attribute("value") or 0) > 1)
    page.find("#draw-face").click()
    page.browser.execute_script("seek(0.2)")
    page.wait(lambda: page.browser.execute_script(DRAWN) == 0)
    # Chromium also notes that this test reads pixels slowly.
    assert [
        entry for entry in page.browser.get_log("browser") if entry["source"] != "rendering"
    ] == []


def test_switching_streams_off_by_keyboard_until_it_guesses(page: Visit, clip: Path) -> None:
    page.choose(clip)
    assert page.reasons()[0] == "no words"
    page.changed(lambda: page.find("#switch-2").send_keys(Keys.SPACE))
    assert page.reasons()[2].startswith("switched off (no face in ")
    assert page.strip(2)[0] == 0
    assert "guess" not in page.message
    page.changed(lambda: page.find("#switch-1").send_keys(Keys.SPACE))
    assert page.find("#said .guessing").text == "Nothing is visible, so this is a guess."
    assert not page.texts("#card-student h4")
    page.changed(lambda: page.find("#samples").send_keys(Keys.ARROW_DOWN))
    assert not page.find("#stage").is_displayed()


def test_text_only_and_a_subtitle_file(page: Visit, tmp_path: Path) -> None:
    assert not page.find("#predict-recording").is_enabled()
    (tmp_path / "said.vtt").write_text("WEBVTT\n\n00:00.100 --> 00:00.300\nso good\n")
    page.find("#clip-file").send_keys(str(tmp_path / "said.vtt"))
    page.wait(lambda: "so good" in (page.find("#transcript").get_attribute("value") or ""))
    page.find("#predict-recording").send_keys(Keys.ENTER)
    page.wait(lambda: page.message.startswith("Your text: the student predicts"))
    assert page.texts("#words span") == ["so", "good"]
    assert page.reasons() == ["all visible", "no recording", "no recording"]
    assert not page.find("#screen").is_displayed()


def test_recording_with_camera_and_microphone(page: Visit) -> None:
    assert "consented" in page.find("#consent").text
    page.find("#record").click()
    page.wait(
        lambda: page.find("#recording-sign").is_displayed() and page.find("#record").text == "Stop"
    )
    assert not page.find("#predict-recording").is_enabled()
    page.wait(lambda: page.find("#recording-time").text == "0:01")
    page.find("#record").send_keys(Keys.ENTER)
    page.wait(lambda: page.message.startswith("recording.webm: the student predicts"))
    assert page.find("#record").text == "Record"
    assert not page.find("#recording-sign").is_displayed()
    assert page.strip(1)[0] > 0  # it beeps
    assert page.browser.execute_script("return document.getElementById('video').srcObject") is None


def test_an_unreadable_recording_is_reported(page: Visit, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"bad" * 100)
    page.find("#clip-file").send_keys(str(tmp_path / "bad.mp4"))
    page.wait(lambda: "cannot be decoded" in page.find("#problem").text)
    assert (page.message, page.texts("#cards > *")) == ("", [])


@pytest.mark.parametrize("width", [320, 1280])
def test_the_page_fits_narrow_and_wide_screens(page: Visit, clip: Path, width: int) -> None:
    page.choose(clip)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_control_has_a_name(page: Visit, clip: Path) -> None:
    page.choose(clip)
    controls = page.browser.find_elements(By.CSS_SELECTOR, "input, textarea, select, button")
    assert all(control.accessible_name for control in controls if control.is_displayed())
