"""The report's page as a browser lays it out on a narrow screen."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from selenium import webdriver

from tests.serve.browser import browsing

TABLE = "document.querySelector('#table-inter-modality-weighted-f1 .scroll')"


@pytest.fixture(scope="module")
def page(reported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        metrics = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get((reported / "report.html").as_uri())
        yield browser


def right_edge(browser: webdriver.Chrome) -> float:
    """Return how dark the table is at its right edge, between two rows of text; 0 is white."""
    box: Any = browser.execute_script(
        f"{TABLE}.scrollIntoView(); const box = {TABLE}.getBoundingClientRect();return [box.right, "
        "box.bottom];"
    )
    screen = base64.b64decode(browser.get_screenshot_as_base64())
    pixels = matplotlib.image.imread(io.BytesIO(screen), format="png")[..., :3]
    right, bottom = (int(edge) for edge in box)
    return float(1 - np.median(pixels[bottom - 40 : bottom - 4, right - 3 : right]))


def test_only_tables_scroll_sideways(page: webdriver.Chrome) -> None:
    wide: bool = page.execute_script(f"return {TABLE}.scrollWidth > {TABLE}.clientWidth + 50")
    assert wide
    assert page.execute_script("return document.documentElement.scrollWidth") <= 400


def test_a_shadow_marks_hidden_columns_and_the_methods_stay_visible(page: webdriver.Chrome) -> None:
    first = f"return {TABLE}.querySelector('tbody th').getBoundingClientRect().left"
    page.execute_script(f"{TABLE}.scrollLeft = 0")
    before, shadow = page.execute_script(first), right_edge(page)
    page.execute_script(f"{TABLE}.scrollLeft = 10000")
    assert page.execute_script(f"return {TABLE}.scrollLeft") > 50
    assert page.execute_script(first) == before
    assert shadow > 0.1
    assert right_edge(page) < 0.02
