"""The pictures of the page in docs/images, with the model that is served.

    python -m benchmarks.page_screenshots --out docs/images

needs the development extra and Debian's package `chromium`. Writes page-light.png, page-dark.png
and page-phone.png, each of at most 256 colours.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, cast

from PIL import Image
from playwright.sync_api import Browser, FloatRect, Page

from benchmarks.browser import open_chromium
from benchmarks.served import our_service

_PATIENCE = 60_000.0  # ms


@dataclass(frozen=True, slots=True)
class View:
    """One picture: what kind of screen, which sample, what is asked of it."""

    name: str
    width: int
    height: int
    scheme: Literal["dark", "light"]
    sample: str
    expressions: tuple[str, ...]
    scale: float = 1


VIEWS = (
    View("page-light", 1200, 800, "light", "astronaut.jpg", ("the person", "the hair")),
    View("page-dark", 1200, 800, "dark", "coffee.jpg", ("the spoon on the right", "the table")),
    View("page-phone", 360, 780, "light", "astronaut.jpg", ("the person", "the hair"), 1.5),
)
# Of a picture's 256 colours; the others go to the rest of the controls, few pixels of many kinds.
_EXACT = 24
_PHOTO_COLOURS = 176


def photograph(browser: Browser, url: str, view: View) -> bytes:
    """A PNG of the page at `url` when the answers of `view` are shown."""
    context = browser.new_context(
        viewport={"width": view.width, "height": view.height},
        color_scheme=view.scheme,
        device_scale_factor=view.scale,
        has_touch=view.width < 600,
    )
    try:
        page = context.new_page()
        page.set_default_timeout(_PATIENCE)
        page.goto(url)
        page.click(f"[data-sample='{view.sample}']")
        for expression in view.expressions:
            ask(page, expression)
        page.mouse.move(1, 1)  # a row under the pointer would dim the other masks
        page.evaluate("document.activeElement.blur()")
        page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100)))")
        return compressed(page.screenshot(), page.locator("#frame").bounding_box(), view.scale)
    finally:
        context.close()


def ask(page: Page, expression: str) -> None:
    """Type it, and wait for its mask."""
    page.fill("#expression", expression)
    page.press("#expression", "Enter")
    page.locator("#finds li.found", has_text=expression).wait_for()


def compressed(png: bytes, frame: FloatRect | None, scale: float) -> bytes:
    """The same picture in 256 colours of its own; `frame` is where the photo lies."""
    whole = Image.open(BytesIO(png)).convert("RGB")
    assert frame is not None
    left, top = round(frame["x"] * scale), round(frame["y"] * scale)
    right = left + round(frame["width"] * scale)
    bottom = min(top + round(frame["height"] * scale), whole.height)
    box = (left, top, right, bottom)
    photo = whole.crop(box)
    controls = whole.copy()
    controls.paste(whole.crop((0, 0, 1, 1)).resize(photo.size), box)
    counted = sorted(controls.getcolors(controls.width * controls.height) or [])
    colours = [part for _, colour in counted[-_EXACT:] for part in cast("Iterable[int]", colour)]
    rest = 256 - _EXACT - _PHOTO_COLOURS
    colours += photo.quantize(_PHOTO_COLOURS).getpalette() or []
    colours += controls.quantize(rest, Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours)
    buffer = BytesIO()
    whole.quantize(palette=palette, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.page_screenshots", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="directory to fill")
    chosen = parser.parse_args(arguments)
    with open_chromium() as browser:
        for view in VIEWS:
            with our_service() as (address, _):  # each its own, to which no photo is known
                picture = photograph(browser, address.removesuffix("segment"), view)
            path = chosen.out / f"{view.name}.png"
            path.write_bytes(picture)
            print(f"{path}: {len(picture):,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
