"""Somebody with a browser, who visits the example project."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.limits import LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

PHONE, DESK = 390, 1280

# What stands behind an element: the first of its ancestors that has a colour.
CONTRAST = """
const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
const light = colour => {
  const [r, g, b] = numbers(colour).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = element => {
  for (let each = element; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    if (numbers(colour)[3] !== 0) return colour;
  }
  return 'rgb(255, 255, 255)';
};
return [...document.querySelectorAll(arguments[0])].map(element => {
  const pair = [light(getComputedStyle(element).color), light(behind(element))];
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
});
"""


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
        wait = WebDriverWait(self.chrome, LIMIT, 0.05, [WebDriverException])
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

    def run(self, script: str, *arguments: Any) -> Any:
        return self.chrome.execute_script(script, *arguments)

    def all(self, css: str) -> list[WebElement]:
        return self.chrome.find_elements("css selector", css)

    def type(self, text: str) -> None:
        """Press keys, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.chrome, duration=0).send_keys(text).perform()

    def tab_to(self, css: str, *, backwards: bool = False) -> None:
        """Press the Tab key until something has the focus."""
        from selenium.webdriver import ActionChains, Keys

        reached = "return document.activeElement.matches(arguments[0])"
        for _ in range(150):
            chain = ActionChains(self.chrome, duration=0)
            if backwards:
                chain.key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT)
            else:
                chain.send_keys(Keys.TAB)
            chain.perform()
            if self.run(reached, css):
                return
        msg = f"The Tab key does not reach {css}."
        raise AssertionError(msg)

    def enter(self) -> None:
        """Press Enter where the focus is, and wait for the page."""
        with self.leaving():
            self.type("\ue007")

    def rewrite(self, old: str, new: str) -> None:
        """Edit the text of the only text area."""
        area = self.find("textarea")
        text = area.get_attribute("value")
        assert old in text
        area.clear()
        area.send_keys(text.replace(old, new))

    def picture(self, path: Path, width: int) -> None:
        """Take a picture of the whole page, on a screen as high as that."""
        self.screen(width)
        self.screen(width, self.run("return document.documentElement.scrollHeight"))
        self.chrome.save_screenshot(str(path))


def brightness(colour: str) -> float:
    numbers = colour.removeprefix("rgb(").removesuffix(")").split(",")
    return sum(map(float, numbers)) / 3
