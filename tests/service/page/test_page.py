"""The page in headless Chromium: what a person does with a photo, and sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Route
from pycocotools import mask as coco_mask

from tests.service.page.visits import Running, Visit, segment
from tests.waiting import wait_until

pytestmark = pytest.mark.long(20)


def test_masks_lie_where_they_belong_and_the_second_needs_no_encoding(
    serve: Callable[..., Running], visit: Callable[..., Visit], drawing: Any
) -> None:
    running = serve()
    tab = visit(running.url)
    tab.choose(drawing.encoded())
    photo = np.asarray(drawing.picture)
    assert (tab.canvas() == photo).all()
    tab.ask("the red one")
    first = tab.page.locator("#runs li").first
    assert "already known" not in first.inner_text()
    tab.ask("the blue one")
    assert "the blue one" in first.inner_text()
    assert "already known" in first.inner_text()
    assert running.service.backend.images_encoded == 1
    assert "decode 0.0 ms" in tab.page.inner_text("#stages")
    changed = (tab.canvas() != photo).any(axis=-1)
    where = drawing.red | drawing.blue
    assert (changed & where).sum() / (changed | where).sum() > 0.9
    opacity = float(tab.page.input_value("#opacity"))
    for mask, colour in ((drawing.red, (0, 114, 178)), (drawing.blue, (230, 159, 0))):
        blended = (1 - opacity) * photo[mask][0] + opacity * np.array(colour)
        assert np.abs(np.median(tab.canvas()[mask], axis=0) - blended).max() <= 2
    assert "score 0.9" in tab.page.inner_text("#finds li >> nth=0")


def test_who_asks_before_the_photo_is_there_is_answered(
    serve: Callable[..., Running], visit: Callable[..., Visit]
) -> None:
    tab = visit(serve().url)
    held: list[Route] = []
    tab.page.route("**/samples/coffee.jpg", lambda route: held.append(route))
    tab.page.click("[data-sample='coffee.jpg']")
    tab.page.fill("#expression", "the cup")
    tab.page.press("#expression", "Enter")
    assert tab.page.input_value("#expression") == ""
    assert not tab.page.locator("#finds li").count()
    wait_until(lambda: tab.page.evaluate("1") and held, "the photo to be asked for")
    held[0].continue_()
    tab.page.locator("#finds li.found", has_text="the cup").wait_for()
    assert tab.page.inner_text("#caption").startswith("coffee.jpg")


def test_threshold_is_applied_in_the_page(
    serve: Callable[..., Running], visit: Callable[..., Visit], drawing: Any
) -> None:
    running = serve()
    tab = visit(running.url)
    body = drawing.encoded()
    tab.choose(body)
    tab.ask("the dog")
    asked = running.service.metric("segvlm_requests_total", route="/segment", code="200")
    photo = np.asarray(drawing.picture)
    areas = []
    for threshold in (0.1, 0.5, 0.93):
        tab.slide("threshold", threshold)
        shown = (tab.canvas() != photo).any(axis=-1)
        (result,) = segment(running.url, body, ["the dog"], threshold=threshold)["results"]
        exact = coco_mask.decode(result["mask"]).astype(bool)
        # The map has 8 bits, and the mask's number may reach over a narrow mask's edge.
        assert (shown != exact).mean() < 0.002
        areas.append(int(shown.sum()))
        assert tab.page.inner_text("#threshold-value") == f"{threshold:.2f}"
        told = f"{100 * result['area'] / exact.size:.0f} % of the photo"
        if threshold == 0.5:  # the model's own, with which the answer was made
            told = f"score {result['score']:.2f}, {told}"
        else:
            told += "; its score is known at threshold 0.50 only"
        assert tab.page.inner_text("#finds .fact") == told
    assert areas[0] > areas[1] > areas[2] > 0
    served = running.service.metric("segvlm_requests_total", route="/segment", code="200")
    assert served == asked + 3  # those of this test


def test_models_own_threshold_may_lie_between_the_sliders_steps(
    serve: Callable[..., Running], visit: Callable[..., Visit], small_photo: bytes
) -> None:
    tab = visit(serve().url)

    def between(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace('"0.5"', '"0.3728"'))

    tab.page.route(tab.url, between)
    tab.page.reload()
    tab.choose(small_photo)
    tab.ask("the red one")
    assert "score" in tab.page.inner_text("#finds .fact")
    assert "threshold" not in tab.page.inner_text("#snippet")
    tab.slide("threshold", 0.38)
    assert "known at threshold 0.37 only" in tab.page.inner_text("#finds .fact")
    assert "threshold=0.38" in tab.page.inner_text("#snippet")


def test_opacity_hiding_and_removing(
    serve: Callable[..., Running], visit: Callable[..., Visit], drawing: Any
) -> None:
    tab = visit(serve().url)
    tab.choose(drawing.encoded())
    tab.ask("the red one")
    photo = np.asarray(drawing.picture)
    y, x = 300, 130  # inside, and off the mask's number
    assert drawing.red[y, x]
    tab.slide("opacity", 0)
    assert (tab.canvas()[y, x] == photo[y, x]).all()
    assert (tab.canvas() != photo).any()  # its outline
    tab.slide("opacity", 1)
    opaque = tab.canvas()[y, x]
    assert (opaque != photo[y, x]).any()
    tab.page.uncheck("[aria-label='Show the red one']", force=True)
    assert (tab.canvas() == photo).all()
    tab.page.check("[aria-label='Show the red one']", force=True)
    assert (tab.canvas()[y, x] == opaque).all()
    tab.page.click("[aria-label='Remove the red one']")
    assert (tab.canvas() == photo).all()
    assert tab.page.locator("#finds li").count() == 0
    tab.page.click("#tries >> text=the red one")  # offered again
    tab.page.locator("#finds li.found").wait_for()


def test_dropped_and_pasted_photos(
    serve: Callable[..., Running], visit: Callable[..., Visit], small_photo: bytes
) -> None:
    tab = visit(serve().url)
    give = """([kind, bytes, name]) => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(bytes)], name, { type: "image/png" }));
      const event = kind === "drop"
        ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
      document.getElementById("frame").dispatchEvent(event);
    }"""
    for kind in ("drop", "paste"):
        tab.page.evaluate(give, [kind, list(small_photo), f"{kind}.png"])
        tab.page.locator("#caption", has_text=f"{kind}.png, 96 × 64").wait_for()
    assert tab.canvas().shape[:2] == (640, 960)


def test_photo_is_turned_as_the_service_turns_it(
    serve: Callable[..., Running], visit: Callable[..., Visit], drawing: Any
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    tab = visit(serve().url)
    tab.choose(drawing.encoded("JPEG", exif=exif, quality=95), "turned.jpg", "image/jpeg")
    assert tab.page.inner_text("#caption") == "turned.jpg, 600 × 960"
    before = tab.canvas().astype(int)
    tab.ask("the red one")
    changed = (np.abs(tab.canvas() - before) > 24).any(axis=-1)
    red = np.rot90(drawing.red, -1)
    assert (changed & red).sum() / (changed | red).sum() > 0.9


def test_nothing_foreign_runs_or_is_fetched(
    serve: Callable[..., Running], visit: Callable[..., Visit]
) -> None:
    """The watch over the console, on which the other tests rely, sees what the policy refuses."""
    tab = visit(serve().url)
    tab.page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.append("document.title = 'taken over'");
          const picture = document.createElement("img");
          picture.src = "http://localhost:9/picture.png";
          document.body.append(picture);
          try { document.body.append(script); } catch { /* trusted types */ }
        }"""
    )
    tab.expect_fault("(?i)content security policy|trusted")
    assert tab.page.title() == "SegVLM"
    tab.hosts.discard("localhost:9")  # seen as asked for, never sent
