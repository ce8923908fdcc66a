"""The page in a real Chromium, by mouse and by keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.serve.browser import Page, browsing
from tests.serve.running import Running, running


@pytest.fixture(scope="module")
def service(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(served, tmp_path_factory.mktemp("log") / "log") as started:
        yield started


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(chromium: webdriver.Chrome, service: Running) -> Page:
    opened = Page(chromium, service.url, "#sample=2")
    opened.wait(lambda: "the student predicts" in opened.message)
    return opened


def test_shows_the_predictions_of_all_three(page: Page) -> None:
    percentages = page.percentages()
    assert list(percentages) == ["student", "teacher", "control"]
    for shares in percentages.values():
        assert sum(float(share.split()[0]) for share in shares) == pytest.approx(100, abs=0.2)
    assert page.message.startswith("test-2, labelled ")
    assert "Tested with nothing missing on 18 samples: F1" in page.find("#card-student").text
    assert "Not ruled out:" in page.find("#card-student").text


def test_switching_a_modality_off_by_mouse(page: Page) -> None:
    page.changed(lambda: page.find("#switch-0").click())
    assert page.find("#share-0").text == "0 of 4 frames"
    assert "Tested with only audio and vision" in page.find("#card-teacher").text
    assert not page.browser.find_elements(By.CSS_SELECTOR, "#strip-0 rect")
    assert "off=language" in page.browser.current_url


def test_keyboard_navigation(page: Page) -> None:
    page.browser.execute_script("document.activeElement.blur()")
    reached: list[str] = []
    for _ in range(12):
        ActionChains(page.browser).send_keys(Keys.TAB).perform()
        reached.append(page.browser.switch_to.active_element.get_attribute("id") or "")
    wanted = [
        "search",
        "samples",
        "random",
        "file",
        "switch-0",
        "switch-1",
        "switch-2",
        "missing",
        "again",
    ]
    assert [name for name in reached if name in wanted][: len(wanted)] == wanted
    page.find("#missing").send_keys(Keys.HOME)
    page.changed(lambda: page.find("#missing").send_keys(*[Keys.ARROW_RIGHT] * 12))
    assert page.find("#share").text == "60 %"
    assert (
        "60 % of all frames missing" not in page.find("#card-student").text
    )  # the nearest that was tested
    assert "50 % of all frames missing" in page.find("#card-student").text
    page.changed(lambda: page.find("#switch-1").send_keys(Keys.SPACE))
    page.changed(lambda: page.find("#samples").send_keys(Keys.ARROW_DOWN))
    assert page.message.startswith("test-3, ")


def test_everything_missing_and_back(page: Page) -> None:
    complete = page.percentages()
    page.changed(lambda: page.find("#missing").send_keys(Keys.END))
    assert not page.browser.find_elements(By.CSS_SELECTOR, ".strip rect")
    assert "100 % of all frames missing" in page.find("#card-student").text
    assert page.changed(lambda: page.find("#missing").send_keys(Keys.HOME)) == complete


def test_searching_and_a_random_sample(page: Page) -> None:
    page.find("#search").send_keys("positive")
    page.wait(lambda: page.find("#found").text == "5 found")
    listed = page.texts("#samples option")
    assert len(listed) == 5
    assert all(text.endswith("positive") for text in listed)
    page.find("#random").click()
    page.wait(lambda: page.find("#found").text.startswith("18 found"))
    page.wait(lambda: len(page.texts("#samples option:checked")) == 1)


def test_a_users_file(page: Page, tmp_path: Path) -> None:
    good = tmp_path / "mine.json"
    good.write_text(json.dumps({"audio": [[0.5] * 8, None, [1.0] * 8]}))
    page.find("#file").send_keys(str(good))
    page.wait(lambda: page.message.startswith("mine.json: the student predicts"))
    assert page.find("#share-0").text == "missing"
    assert page.find("#share-1").text == "2 of 3 frames"
    np.savez(tmp_path / "mine.npz", vision=np.ones((2, 8)))
    page.find("#file").send_keys(str(tmp_path / "mine.npz"))
    page.wait(lambda: page.message.startswith("mine.npz: the student predicts"))
    bad = tmp_path / "bad.json"
    bad.write_text('{"audio": [[1, 2]]}')
    page.find("#file").send_keys(str(bad))
    page.wait(lambda: "List should have at least 8 items" in page.find("#problem").text)
    assert (page.message, page.texts("#cards > *")) == ("", [])
    page.changed(lambda: page.find("#samples").send_keys(Keys.ARROW_DOWN))
    assert not page.find("#problem").is_displayed()


def test_an_address_restores_the_view(page: Page, service: Running) -> None:
    page.find("#switch-2").click()
    page.changed(lambda: page.find("#missing").send_keys(*[Keys.ARROW_RIGHT] * 6))
    page.wait(lambda: "missing=30" in page.browser.current_url)
    page.wait(lambda: page.find("#cards").get_attribute("aria-busy") == "false")
    before, address = page.percentages(), page.browser.current_url
    reopened = Page(
        page.browser, service.url, address.partition("/#")[2] and "#" + address.partition("/#")[2]
    )
    reopened.wait(lambda: reopened.percentages() == before)
    assert not reopened.find("#switch-2").is_selected()


EDGES = """
const [bars, slider] = ["glance", "missing"].map((id) =>
  document.getElementById(id).getBoundingClientRect());
return [bars.top, bars.bottom, slider.top];
"""


@pytest.mark.parametrize("width", [320, 400, 500, 1280])
def test_the_page_fits_narrow_and_wide_screens(page: Page, width: int) -> None:
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    try:
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= width
        page.browser.execute_script("document.getElementById('missing').scrollIntoView()")
        if width < 600:  # the student's bars stay in sight above the slider
            top, bottom, slider = page.browser.execute_script(EDGES)
            assert 0 <= top < bottom < slider < 900
            assert page.find("#said").is_displayed()
        assert page.find("#glance").is_displayed() == (width < 600)
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_asks_for_the_token(
    chromium: webdriver.Chrome, served: Path, tmp_path: Path
) -> None:
    with running(served, tmp_path / "log", environment={"CORRKD_TOKEN": "hush"}) as guarded:
        page = Page(chromium, guarded.url)
        page.wait(lambda: page.find("#token-form").is_displayed())
        page.find("#token").send_keys("hush", Keys.ENTER)
        page.wait(lambda: "the student predicts" in page.message)
        assert not page.find("#token-form").is_displayed()
        page.find("#interface").click()  # the token goes along
        page.wait(lambda: page.texts("#api .title") != [])
        chromium.execute_script("sessionStorage.clear()")
        api = Page(chromium, guarded.url, "docs")
        api.wait(lambda: "requires a token" in api.find("#problem").text)


def test_the_api_is_documented_without_a_request_to_another_site(
    chromium: webdriver.Chrome, service: Running
) -> None:
    chromium.get_log("browser")
    page = Page(chromium, service.url, "docs")
    page.wait(lambda: "/v1/predict" in page.texts("#api .opblock-summary-path > a > span"))
    loaded = chromium.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert f"{service.url}/openapi.json" in loaded
    assert [url for url in loaded if not url.startswith((f"{service.url}/", "data:"))] == []
    page.find("#operations-default-model_v1_model_get button.opblock-summary-control").click()
    page.wait(lambda: page.texts(".try-out__btn") != [])
    page.find(".try-out__btn").click()
    page.wait(lambda: page.texts(".execute") != [])
    page.find(".execute").click()
    page.wait(lambda: any('"sha256"' in text for text in page.texts(".live-responses-table")))
    assert chromium.get_log("browser") == []  # nothing was blocked either


def test_the_console_stays_empty(page: Page) -> None:
    page.browser.get_log("browser")
    page.changed(lambda: page.find("#switch-0").click())
    assert page.browser.get_log("browser") == []
