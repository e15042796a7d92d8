"""The page about runs in a real browser, driven by plain WebDriver calls."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from written_runs import write_followed

from lightning_vos.commands.report_page import page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,900"),
)
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="needs Chromium and chromedriver, of which one is not on the PATH"
)


class Browser:
    """One tab."""

    def __init__(self, driver: str, profile: Path) -> None:
        self.driver = driver
        options = {"binary": BROWSER, "args": [*SWITCHES, f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        self.session = f"/session/{self.send('/session', wanted)['sessionId']}"

    def send(self, path: str, content: Any = None, method: str | None = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{self.driver}{path}", data, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def run(self, script: str, *words: Any) -> Any:
        return self.send(f"{self.session}/execute/sync", {"script": script, "args": [*words]})

    def click(self, selector: str) -> None:
        """As a person clicks: at the place of the element, whatever lies there."""
        found = self.send(f"{self.session}/element", {"using": "css selector", "value": selector})
        self.send(f"{self.session}/element/{next(iter(found.values()))}/click", {})

    def column(self, table: str, number: int) -> list[str]:
        script = "const table = document.querySelector(arguments[0]); return [...table.tBodies[0].rows]"
        return self.run(f"{script}.map((row) => row.cells[arguments[1]].innerText)", table, number)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser that shows the page of two runs, from disk."""
    folder = write_followed(tmp_path_factory.mktemp("shown"), {"first": 2, "second": 7})
    page([folder / "first", folder / "second"], folder / "report.html")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    profile = tmp_path_factory.mktemp("profile")
    assert DRIVER is not None
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        tab = Browser(f"http://127.0.0.1:{port}", profile)
        tab.send(f"{tab.session}/url", {"url": (folder / "report.html").as_uri()})
        yield tab
        tab.send(tab.session, method="DELETE")
    finally:
        driver.terminate()
        driver.wait(30)


def test_a_click_sorts_a_table(browser):
    table, head = "#sequences table", "#sequences th[data-column='{}']"
    names = ["synthetic-val-000", "synthetic-val-001", "synthetic-val-002"]
    assert browser.column(table, 0) == names
    values = [float(text) for text in browser.column(table, 2)]
    assert values != sorted(values, reverse=True)
    browser.click(head.format(2))
    assert [float(text) for text in browser.column(table, 2)] == sorted(values, reverse=True)
    by_value = [name for _, name in sorted(zip(values, names, strict=True), reverse=True)]
    assert browser.column(table, 0) == by_value
    browser.click(head.format(2))
    assert browser.column(table, 0) == by_value[::-1]
    shown = "return document.querySelector(arguments[0]).getAttribute('aria-sort')"
    assert browser.run(shown, head.format(2)) == "ascending"
    browser.click(head.format(0))
    assert browser.column(table, 0) == names
    assert browser.run(shown, head.format(2)) is None
    browser.click(head.format(3))  # a column of differences, whose minus is no hyphen
    changes = [float(text.replace("\N{MINUS SIGN}", "-")) for text in browser.column(table, 3)]
    assert changes == sorted(changes, reverse=True)
    assert max(changes) < 0


def test_two_runs_are_compared(browser):
    heads = "return [...document.querySelectorAll('#sequences th[data-column]')]"
    assert browser.run(f"{heads}.map((head) => head.innerText)")[:4] == ["sequence", "A", "B", "B\N{MINUS SIGN}A"]
    assert browser.run("return document.querySelector('.runs').innerText").split()[::3] == ["A", "B"]
    lines = "return [...document.querySelectorAll('svg polyline')]"
    assert len(set(browser.run(f"{lines}.map((line) => getComputedStyle(line).stroke)"))) == 2


def test_pictures_are_there_and_grow_by_a_click(browser):
    assert browser.run("return document.images.length") == 8 * 5
    height = "return document.querySelector('figure img').getBoundingClientRect().height"
    small = browser.run(height)
    browser.click("figure img")
    assert browser.run(height) > 2 * small
    browser.click("figure img")
    assert browser.run(height) == small
    loaded = "one.complete || new Promise((done) => { one.onload = one.onerror = done; })"
    seen = f"one.loading = 'eager'; await ({loaded}); return one.naturalWidth;"
    widths = browser.run(f"return Promise.all([...document.images].map(async (one) => {{ {seen} }}))")
    assert set(widths) == {80}


def test_nothing_is_fetched(browser):
    assert browser.run("return location.protocol") == "file:"
    fetched = browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_light_and_dark(browser, scheme, is_dark):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.send(f"{browser.session}/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": media})
    browser.run("window.scrollTo(0, 0)")
    png = b64decode(browser.send(f"{browser.session}/screenshot"))
    shot = np.asarray(Image.open(io.BytesIO(png)).convert("L")).astype(float)
    assert (np.median(shot) < 60) == is_dark
    assert shot.std() > 10  # there is something to see
