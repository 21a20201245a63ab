"""Helpers of the browser tests: the browser, and an application behind a real server."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import uvicorn
from starlette.types import ASGIApp

from cluster.feedback import Feedback
from tests.helpers import free_port, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# How long a page is waited for, in milliseconds: it only passes where something is wrong, also on a busy machine.
PATIENCE_MS = 60_000
# The marks of the browser tests.
IN_A_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]


@dataclass(frozen=True)
class Site:
    """An application that is served, and its database."""

    url: str
    database: Feedback


@contextmanager
def open_page(browser: "Browser", url: str, token: str, width: int = 1280) -> Iterator["Page"]:
    """Yields a browser session of its own, signed in with a token; any error in the page fails the test."""
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.keyboard.type(token)
    page.keyboard.press("Enter")
    yield page
    context.close()
    assert errors == []


def await_models(page: "Page") -> None:
    """Waits until the chat page has its list of models; before that it sends nothing."""
    page.locator("#model option").first.wait_for(state="attached")


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Serves an application, and gives its address."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, 60, "the server")
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)
