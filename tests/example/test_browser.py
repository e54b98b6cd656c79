"""The shop in a real browser: what a visitor does, sees, and is told."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.example.shop import Shop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.browser

PHONE, DESK = 390, 1280
# An order of the book that nobody has paid.
WAITING = "/orders/511/"
PAGES = (
    "/",
    "/orders/",
    "/orders/?status=cancelled&page=2",
    "/orders/1/",
    WAITING,
    "/orders/new/",
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the shop is served, filled with the order book."""
    shop = Shop(tmp_path_factory.mktemp("served"))
    shop.manage("migrate", "--verbosity", "0")
    shop.manage("seed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    log = shop.folder / "server.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            shop.command("runserver", "--noreload", host),
            env=shop.env,
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
            urllib.request.urlopen(url, timeout=10).close()
            return
        time.sleep(0.2)
    pytest.fail(f"No answer from {url}: {log.read_text()}")


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(
        filter(
            None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
        )
    )
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    try:
        yield driver
    finally:
        driver.quit()


@dataclass
class Visitor:
    """Somebody with a browser, who has just come in."""

    chrome: Chrome
    address: str

    def screen(self, width: int, height: int = 900) -> None:
        """Hold a phone, or sit at a desk."""
        self.chrome.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {
                "width": width,
                "height": height,
                "deviceScaleFactor": 1,
                "mobile": width <= PHONE,
            },
        )

    def prefer(self, scheme: str) -> None:
        """Like it light or dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.chrome.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [feature]}
        )

    def go(self, path: str) -> None:
        self.chrome.get(self.address + path)

    def path(self) -> str:
        return self.chrome.current_url.removeprefix(self.address)

    def find(self, css: str) -> WebElement:
        return self.chrome.find_element("css selector", css)

    def field(self, name: str) -> WebElement:
        return self.chrome.find_element("name", name)

    def press(self, label: str) -> None:
        """Press the button or follow the link of this name, and wait for the page."""
        button = self.chrome.find_element(
            "xpath", f"//main//*[self::a or self::button][normalize-space()='{label}']"
        )
        with self.leaving():
            button.click()

    @contextlib.contextmanager
    def leaving(self) -> Iterator[None]:
        """Do something that leads to another page, and wait until that is there."""
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.support.wait import WebDriverWait

        self.run("window.oldPage = true")
        yield
        # Between two pages the browser may answer with any error.
        wait = WebDriverWait(self.chrome, 15, 0.05, [WebDriverException])
        arrived = "return !window.oldPage && document.readyState === 'complete'"
        wait.until(lambda chrome: chrome.execute_script(arrived))

    def choose(self, name: str, label: str) -> None:
        """Choose the option of a select whose text begins like this."""
        self.field(name).find_element(
            "xpath", f"option[starts-with(normalize-space(), '{label}')]"
        ).click()

    def fill(self, customer: str, *rows: tuple[int, str, str]) -> None:
        """Fill in the form of a new order."""
        self.go("/orders/new/")
        self.choose("customer", customer)
        for row, product, quantity in rows:
            self.choose(f"lines.{row}.sku", product)
            self.field(f"lines.{row}.quantity").send_keys(quantity)

    def text(self) -> str:
        return self.find("main").text

    def error_of(self, name: str) -> str:
        """Return what a screen reader says about a field: its description."""
        described_by = self.field(name).get_attribute("aria-describedby")
        return self.chrome.find_element("id", described_by).text

    def run(self, script: str) -> Any:
        return self.chrome.execute_script(script)

    def picture(self, path: Path, width: int) -> None:
        """Take a picture of the whole page, on a screen as high as that."""
        self.screen(width)
        self.screen(width, self.run("return document.documentElement.scrollHeight"))
        self.chrome.save_screenshot(str(path))


@pytest.fixture
def visitor(chrome: Chrome, address: str) -> Visitor:
    chrome.get("about:blank")
    visitor = Visitor(chrome, address)
    visitor.go("/")
    chrome.delete_all_cookies()
    visitor.screen(DESK)
    visitor.prefer("light")
    chrome.get_log("browser")
    return visitor


def test_place_an_order(visitor):
    """
    An order that was placed is shown with its payment, its parcel and its story, and
    heads the list.
    """
    visitor.fill("Greta Vogel", (0, "Earl Grey", "2"), (1, "Stoneware mug", "1"))
    visitor.press("Place the order")

    reference, _ = visitor.find("h1").text.split()
    text = visitor.text()
    for part in (
        "The order is placed.",
        "Greta Vogel",
        "34.70 EUR",
        "authorised",
        "ready",
        "waiting for payment",
        "Order placed",
        "Shipment prepared",
        "by anonymous",
    ):
        assert part in text
    visitor.go("/orders/")
    assert reference in visitor.find("tbody tr").text


def test_refuse_a_bad_form(visitor):
    """
    Every error stands beside its field and belongs to it for a screen reader; what
    was typed is still there.
    """
    visitor.fill("Greta Vogel", (0, "Earl Grey", "two"), (2, "Bamboo whisk", "-1"))
    visitor.press("Place the order")

    assert visitor.path() == "/orders/new/"
    assert "nothing was written" in visitor.find("[role=alert]").text
    assert "integer" in visitor.error_of("lines.0.quantity")
    assert (
        visitor.error_of("lines.2.quantity")
        == "the quantity must be at least 1, not -1"
    )
    assert visitor.field("lines.0.quantity").get_attribute("value") == "two"
    assert visitor.field("lines.0.quantity").get_attribute("aria-invalid") == "true"
    assert visitor.field("customer").get_attribute("value").startswith("greta.vogel")


def test_refuse_what_the_rules_forbid(visitor):
    """
    A refusal by another app's handler is shown in the form, and the order it had
    followed is not in the list.
    """
    visitor.go("/orders/")
    before = visitor.find("caption").text
    visitor.fill("Samuel Weiss", (0, "Electric kettle", "2"))
    visitor.press("Place the order")

    assert "178.00 EUR is more than the credit" in visitor.find("[role=alert]").text
    visitor.go("/orders/")
    assert visitor.find("caption").text == before


def test_cancel(visitor):
    """
    A cancelled order says so everywhere and has no button any more.
    """
    visitor.fill("Nils Andersen", (0, "Tea tin", "1"))
    visitor.press("Place the order")
    visitor.press("Cancel the order")

    text = visitor.text()
    assert "The order is cancelled." in text
    assert "released" in text
    assert "called off" in text
    assert visitor.chrome.find_elements("css selector", "main button") == []


def test_ship(visitor):
    """
    A shipped order shows its tracking code.
    """
    visitor.fill("Nils Andersen", (0, "Tea tin", "1"))
    visitor.press("Place the order")
    visitor.press("Ship it unpaid")

    text = visitor.text()
    assert "The order is on its way." in text
    assert "KL000" in text
    assert "captured" in text


def test_pay(visitor):
    """
    An order that is paid is shipped, by nobody but the saga, which is over then.
    """
    visitor.fill("Nils Andersen", (0, "Tea tin", "1"))
    visitor.press("Place the order")
    visitor.press("Pay the order")

    text = visitor.text()
    assert "The order is paid, and on its way." in text
    assert "captured" in text
    assert "KL000" in text
    assert "done" in text
    assert visitor.chrome.find_elements("css selector", "main button") == []


def test_filter_and_turn_pages(visitor):
    """
    The filter holds while pages are turned, and is marked as chosen.
    """
    visitor.go("/orders/")
    visitor.press("Shipped")
    visitor.press("Older")

    assert "Page 2 of" in visitor.text()
    assert visitor.find(".filters [aria-current]").text == "Shipped"
    states = visitor.chrome.find_elements("css selector", "td.wide .status")
    assert {state.text for state in states} == {"shipped"}


def test_sign_in_and_leave_a_name(visitor):
    """
    Who is signed in to the admin is named in the trail of what they do.
    """
    visitor.go("/admin/")
    visitor.field("username").send_keys("admin")
    visitor.field("password").send_keys("admin")
    with visitor.leaving():
        visitor.field("password").submit()

    visitor.fill("Nils Andersen", (0, "Tea tin", "1"))
    visitor.press("Place the order")

    assert "by admin" in visitor.text()


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("width", [320, PHONE, DESK])
def test_nothing_is_wider_than_the_screen(visitor, path, width):
    """
    No page scrolls sideways, from the smallest phone on.
    """
    visitor.screen(width)
    visitor.go(path)

    assert visitor.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("path", PAGES)
def test_pages_keep_to_themselves(visitor, path):
    """
    A page loads nothing from elsewhere, has no script and no inline style, and the
    browser complains of nothing.
    """
    visitor.go(path)

    loaded = visitor.run(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert loaded
    assert all(url.startswith(f"{visitor.address}/static/") for url in loaded)
    found = visitor.chrome.find_elements("css selector", "script, style, [style]")
    assert found == []
    assert visitor.chrome.get_log("browser") == []


@pytest.mark.parametrize("path", PAGES)
def test_pages_can_be_used_without_seeing_them(visitor, path):
    """
    One main heading, a caption on every table, a name for every field, and a link
    that skips the menu as the first stop of the Tab key.
    """
    visitor.go(path)

    assert len(visitor.chrome.find_elements("css selector", "h1")) == 1
    assert visitor.run(
        "return [...document.querySelectorAll('table')].every(t => t.caption)"
    )
    assert visitor.run(
        "return [...document.querySelectorAll('main :is(input, select)')]"
        ".every(f => f.type === 'hidden' || f.labels.length === 1)"
    )
    visitor.find("body").send_keys("\ue004")
    focused = visitor.chrome.switch_to.active_element
    assert focused.get_attribute("class") == "skip"


def test_dark_mode(visitor):
    """
    Who prefers dark pages gets them, with light text.
    """
    colours = (
        "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    )
    visitor.go("/")
    light = visitor.run(colours)
    visitor.prefer("dark")
    dark = visitor.run(colours)

    assert brightness(light[0]) - brightness(light[1]) > 150
    assert brightness(dark[1]) - brightness(dark[0]) > 150


def brightness(colour: str) -> float:
    numbers = colour.removeprefix("rgb(").removesuffix(")").split(",")
    return sum(map(float, numbers)) / 3


@pytest.mark.parametrize(("device", "width"), [("phone", PHONE), ("desk", DESK)])
def test_pictures(visitor, tmp_path, device, width):
    """
    The list, an order and a refused form are photographed for whoever reviews them.
    """
    folder = Path(os.environ.get("CQRS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in (
        ("home", "/"),
        ("list", "/orders/?size=12"),
        ("detail", "/orders/1/"),
        ("waiting", WAITING),
    ):
        visitor.go(path)
        visitor.picture(folder / f"{name}-{device}.png", width)
    visitor.fill("Samuel Weiss", (0, "Earl Grey", "two"), (1, "Bamboo whisk", "0"))
    visitor.press("Place the order")
    visitor.picture(folder / f"form-{device}.png", width)

    for picture in folder.glob(f"*-{device}.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
