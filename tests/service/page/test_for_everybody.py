"""The page by keyboard alone, in the dark, on a phone; and that all of it can be read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.service.page.visits import Running, Visit


def test_keyboard_alone_is_enough(
    serve: Callable[..., Running], visit: Callable[..., Visit]
) -> None:
    tab = visit(serve().url)
    press = tab.page.keyboard.press

    def go_to(selector: str, key: str = "Tab") -> None:
        for _ in range(30):
            if tab.page.evaluate("(it) => document.activeElement?.matches(it)", selector):
                return
            press(key)
        pytest.fail(f"{key} does not lead to {selector}")

    go_to("#file")
    ring = "getComputedStyle(document.activeElement.parentElement).outlineStyle"
    assert tab.page.evaluate(ring) == "solid"
    go_to("[data-sample='coffee.jpg']")
    press("Enter")
    tab.page.locator("#caption", has_text="coffee.jpg").wait_for()
    go_to("#expression")
    tab.page.keyboard.type("the red one")
    press("Enter")
    tab.page.locator("#finds li.found").wait_for()
    tab.page.locator("#status", has_text="the red one: score").wait_for()
    go_to("[aria-label='Show the red one']")
    before = tab.canvas()
    press("Space")
    assert (tab.canvas() != before).any()
    press("Space")
    go_to("#threshold")
    press("End")
    assert tab.page.inner_text("#threshold-value") == "1.00"
    go_to("input[name=language]")
    press("ArrowRight")
    assert tab.page.inner_text("#snippet").startswith("import httpx")
    go_to("[aria-label='Remove the red one']", "Shift+Tab")
    press("Enter")
    tab.page.locator("#finds li").wait_for(state="detached")
    assert tab.page.evaluate("document.activeElement.id") == "expression"


CONTRASTS = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const light = (colour) => colour.slice(0, 3).reduce((sum, value, index) => {
    const part = value / 255;
    const linear = part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    return sum + [0.2126, 0.7152, 0.0722][index] * linear;
  }, 0);
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.matches("noscript *")) continue;
    let ground = element;
    while (parse(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
    const pair = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor];
    const [low, high] = pair.map((text) => light(parse(text)) + 0.05).sort((a, b) => a - b);
    found.push([element.textContent.trim().slice(0, 40), high / low]);
  }
  return found;
}"""
NAMELESS = """() => [...document.querySelectorAll("input, button, output, canvas")]
  .filter((it) => !(it.labels?.length || it.ariaLabel || it.textContent.trim() ||
                    it.querySelector("img[alt]")))
  .map((it) => it.outerHTML)"""


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_can_be_read(
    serve: Callable[..., Running], visit: Callable[..., Visit], scheme: str, width: int
) -> None:
    tab = visit(serve().url, color_scheme=scheme, viewport={"width": width, "height": 740})
    tab.page.click("[data-sample='astronaut.jpg']")
    for each in ("red", "blue", "white", "an expression that is so long that it has to be wrapped"):
        tab.ask(each)
    tab.choose(b"hello", "a" * 60 + ".txt", "text/plain")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = tab.page.evaluate(CONTRASTS)
    assert len(contrasts) > 30
    assert [pair for pair in contrasts if pair[1] < 4.5] == []
    assert tab.page.evaluate(NAMELESS) == []
