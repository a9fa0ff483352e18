"""A page in headless Chromium: what fails there, fails the test."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--no-sandbox", "--headless=new", "--disable-gpu", "--disable-quic")
LOCAL = ("file:", "data:", "blob:")
# Of every plot what it is called, the number of marks that were drawn in it, and its width.
PLOTS = """() => [...document.querySelectorAll(".plot")].map((plot) => ({
    label: plot.getAttribute("aria-label"),
    marks: [...plot.querySelectorAll(".role-mark path, .role-mark line")]
        .filter((mark) => mark.getBBox().width + mark.getBBox().height > 0).length,
    width: plot.querySelector("svg")?.getBoundingClientRect().width ?? 0,
    room: plot.getBoundingClientRect().width,
}))"""


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium; the test is skipped where there is none or playwright is not installed."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'shortlist[dev]'")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"needs a browser on the PATH: {', '.join(NAMES)}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(OPTIONS))
        yield browser
        browser.close()


def until(page: Any, condition: str, seconds: float = 10.0) -> None:
    """Waits for a JavaScript condition; Playwright's own way is forbidden by a page's policy."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"not within {seconds:g} seconds: {condition}"
        page.wait_for_timeout(10)


@contextmanager
def page_of(browser: Any, address: str, own: tuple[str, ...], width: int, dark: bool, **options: Any) -> Iterator[Any]:
    """A page in a window of its own, and what is wrong with it.

    Fails where it asks for anything that doesn't begin with one of `own`, where a script fails or the console says so,
    or where it ends wider than the window.
    """
    scheme = "dark" if dark else "light"
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    wrong: list[str] = []
    page = context.new_page()
    page.on("request", lambda r: None if r.url.startswith(own) else wrong.append(f"asks for {r.url}"))
    page.on("pageerror", lambda error: wrong.append(f"script error: {error}"))
    page.on("console", lambda m: wrong.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
    page.goto(address)
    yield page, wrong
    wide = page.evaluate("document.documentElement.scrollWidth")
    wrong += [f"the page is {wide} pixels wide in a window of {width}"] if wide > width else []
    context.close()
    assert not wrong, "\n".join(wrong)


@contextmanager
def opened(browser: Any, path: Path, width: int = 1280, dark: bool = False) -> Iterator[Any]:
    """The page of a file, without a network, all of its plots drawn.

    Fails also where a plot has no marks or does not fit its place.
    """
    with page_of(browser, path.resolve().as_uri(), LOCAL, width, dark, offline=True) as (page, wrong):
        page.wait_for_function("document.documentElement.dataset.plots !== undefined", timeout=60_000)
        assert not page.evaluate("document.documentElement.dataset.errors"), page.inner_text("#errors")
        plots = page.evaluate(PLOTS)
        assert page.evaluate("Number(document.documentElement.dataset.plots)") == len(plots)
        wrong += [f"no marks in the plot {plot['label']!r}" for plot in plots if not plot["marks"]]
        wrong += [f"{plot['label']!r} does not fit its place" for plot in plots if plot["width"] > plot["room"] + 1]
        yield page
