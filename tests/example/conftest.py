"""The example project, served and filled, and a browser: once for all tests."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.example.browser import DESK, Visitor
from tests.example.shop import Shop
from tests.limits import LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome


def seed(shop: Shop) -> None:
    shop.manage("migrate", "--verbosity", "0")
    shop.manage("seed")


@pytest.fixture(scope="session")
def served(once: Callable[[str, Callable[[Shop], None]], Shop]) -> Shop:
    """The shop that is served, filled with the order book."""
    return once("seeded", seed)


@pytest.fixture(scope="session")
def address(served: Shop) -> Iterator[str]:
    """Where it is served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    log = served.folder / "server.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            served.command("runserver", "--noreload", host),
            env=served.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        ) as server,
    ):
        try:
            wait_for(f"http://{host}/", server, log)
            yield f"http://{host}"
        finally:
            server.terminate()
    assert "Traceback" not in log.read_text()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the server answers."""
    for _ in range(150):
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(urllib.error.URLError):
            urllib.request.urlopen(url, timeout=LIMIT).close()
            return
        time.sleep(0.2)
    pytest.fail(f"No answer from {url}: {log.read_text()}")


@pytest.fixture
def visitor(chrome: Chrome, address: str) -> Visitor:
    """Somebody who has just come in, at a desk, and likes it light."""
    chrome.get("about:blank")
    visitor = Visitor(chrome, address)
    visitor.go("/")
    chrome.delete_all_cookies()
    visitor.screen(DESK)
    visitor.prefer("light")
    chrome.get_log("browser")
    return visitor


@pytest.fixture(scope="module")
def sessions() -> list[dict[str, object]]:
    """The cookies of whoever has signed in: once for a module is enough."""
    return []


@pytest.fixture
def operator(visitor: Visitor, sessions: list[dict[str, object]]) -> Visitor:
    """Somebody who has signed in to the admin."""
    for cookie in sessions:
        visitor.chrome.add_cookie(cookie)
    visitor.go("/admin/")
    if not sessions:
        visitor.field("username").send_keys("admin")
        visitor.field("password").send_keys("admin")
        with visitor.leaving():
            visitor.field("password").submit()
        sessions.extend(visitor.chrome.get_cookies())
    return visitor
