"""A real Chromium, and a visitor's actions in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
)


PERCENTAGES = """
return [...document.querySelectorAll(".card")].map((card) => [
  card.id.replace("card-", ""),
  [...card.querySelectorAll(":scope > .bars .number")].map((number) => number.textContent),
]);
"""


@contextmanager
def browsing(profile: Path, *flags: str) -> Iterator[webdriver.Chrome]:
    """Run a browser within the block."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        # Where the set-up provides a browser its absence is a failure.
        assert "CORRKD_BROWSER" not in os.environ, "chromium and chromedriver are not installed"
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, Driver(driver))
    try:
        yield browser
    finally:
        browser.quit()


class Page:
    """A visitor's view of a page, and actions on it."""

    def __init__(self, browser: webdriver.Chrome, url: str, path: str = "") -> None:
        self.browser = browser
        browser.get("about:blank")
        browser.get(f"{url}/{path}")

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def wait(self, condition: Any) -> Any:
        return WebDriverWait(self.browser, 30, 0.05).until(lambda _: condition())

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all matching elements, read at once."""
        texts: list[str] = self.browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)",
            selector,
        )
        return texts

    @property
    def message(self) -> str:
        return self.find("#said").text

    def percentages(self) -> dict[str, list[str]]:
        """Return the percentages on each card, read at once."""
        return dict(self.browser.execute_script(PERCENTAGES))

    def changed(self, act: Any) -> dict[str, list[str]]:
        """Run `act`; return the percentages once they have changed."""
        before = self.percentages()
        act()
        self.wait(lambda: self.percentages() != before)
        return self.percentages()
