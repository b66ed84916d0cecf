"""A real headless Chromium for tests, found where a package manager puts it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
WAY_OUT = "apt-get install chromium"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser. Without one the test is skipped; where CI is set it fails, so that nobody is deceived."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = f"No Chromium here: {WAY_OUT}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass(slots=True)
class Watched:
    """A page in a browser, and everything it did that a report must not do."""

    page: Page
    problems: list[str] = field(default_factory=list)

    def goto(self, address: str) -> "Watched":
        """Open an address and wait for the first frame of the gallery."""
        self.page.goto(address)
        self.settle()
        return self

    def settle(self) -> None:
        """Wait until what was asked for is drawn: two frames."""
        self.page.evaluate("() => new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)))")

    def choose(self, id: str, value: str) -> None:
        """Choose in a filter, as a person does."""
        self.page.select_option(f"#{id}", value)
        self.settle()

    def press(self, *keys: str) -> None:
        """Press keys one after the other."""
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def text(self, selector: str) -> str:
        """What a person reads in a place."""
        return self.page.inner_text(selector).strip()

    def texts(self, selector: str) -> list[str]:
        """What a person reads in every such place."""
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]

    def violations(self) -> list[str]:
        """What axe-core finds wrong with the page as it stands: all its rules, best practices included."""
        found: list[dict[str, Any]] = Axe().run(self.page).response["violations"]
        return [f"{rule['id']}: {rule['help']}: {rule['nodes'][0]['html'][:200]}" for rule in found]


def watch(browser: Browser, **options: Any) -> Watched:
    """A new page; errors, console lines, dialogs and requests that leave the file are its problems."""
    page = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}).new_page()
    watched = Watched(page)
    page.on("console", lambda message: watched.problems.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: watched.problems.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (watched.problems.append("dialog"), dialog.dismiss()))
    page.on("request", lambda request: watched.problems.extend(_outside(request.url)))
    return watched


def _outside(address: str) -> list[str]:
    return [] if address.startswith(("file:", "data:")) else [f"request: {address}"]


def address_of(path: Path) -> str:
    """The address of a file."""
    return path.absolute().as_uri()
