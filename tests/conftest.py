"""What tests of several packages share: signals, and looking at a page in a real browser."""

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# A script starts its background jobs with SIGINT ignored, and so do their children start. Prefect's
# worker turns TERM into an interrupt of itself: it would never end, and what waits for it neither.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Only `-m gpu` sees a GPU: what the other tests prove to the bit, a CPU gives."""
    if not re.search(r"(?<!not )\bgpu\b", config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Torch is asked only where a test needs a GPU: the import takes seconds."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

DRAWN = """Array.from(document.querySelectorAll("figure svg"), svg => {
  const box = svg.getBoundingClientRect();
  const marks = Array.from(svg.querySelectorAll("path, use, text"));
  const seen = marks.filter(mark => mark.getBoundingClientRect().height > 0);
  return box.width > 100 && box.height > 50 && seen.length > 5;
})"""


@dataclass
class Seen:
    """What a browser makes of a page."""

    errors: list[str] = field(default_factory=list)
    """Of the console and of scripts, and warnings too."""
    requests: list[str] = field(default_factory=list)
    """Everything that was asked for beside the page itself."""
    drawn: list[bool] = field(default_factory=list)
    """For each figure, whether it has a size and marks with an extent."""
    text: str = ""
    too_wide: int = 0
    """Pixels by which the page is wider than the window."""


@contextlib.contextmanager
def headless_chromium() -> Iterator[Any]:
    """Playwright's browser; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser for all tests of a file."""
    with headless_chromium() as browser:
        yield browser


@pytest.fixture
def look_at(tmp_path: Path) -> Callable[..., Seen]:
    """Opens a file in headless Chromium; skips where there is none.

    The browser is closed before anything else runs: playwright's loop suffers no other beside it.
    """

    def look(file: Path, **context: object) -> Seen:
        seen = Seen()
        with headless_chromium() as browser:
            page = browser.new_context(**context).new_page()
            page.on("pageerror", lambda error: seen.errors.append(str(error)))
            page.on("console", lambda line: seen.errors.append(line.text))
            page.on("request", lambda request: seen.requests.append(request.url))
            page.goto(file.resolve().as_uri())
            seen.requests.remove(page.url)
            seen.drawn = page.evaluate(DRAWN)
            seen.text = page.inner_text("body")
            seen.too_wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        return seen

    return look
