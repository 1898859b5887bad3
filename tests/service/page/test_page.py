"""The page in headless Chromium: what a person does, sees, reads and takes away."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Route
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from benchmarks.served import our_service
from tests.service.conftest import wait_until
from tests.service.page.visits import Running, Visit, segment

pytestmark = pytest.mark.long(45)


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
        part = 100 * result["area"] / exact.size
        assert f"{result['score']:.2f}, {part:.0f} %" in tab.page.inner_text("#finds .fact")
    assert areas[0] > areas[1] > areas[2] > 0
    served = running.service.metric("segvlm_requests_total", route="/segment", code="200")
    assert served == asked + 3  # those of this test


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


# -- errors in words ----------------------------------------------------------------------------


def test_file_that_is_no_picture(
    serve: Callable[..., Running], visit: Callable[..., Visit], small_photo: bytes
) -> None:
    running = serve(max_body_bytes=100_000)
    tab = visit(running.url)
    tab.choose(small_photo, "good.png")
    tab.choose(b"hello", "notes.txt", "text/plain")
    assert "not a picture" in tab.trouble()
    assert "notes.txt" in tab.trouble()
    assert tab.page.inner_text("#caption").startswith("good.png")  # it stays
    tab.page.click("#dismiss")
    tab.choose(bytes(200_000), "long.png")
    assert "takes at most 0.1 MB" in tab.trouble()
    assert running.service.metric("segvlm_requests_total", route="/segment", code="400") == 0


def test_refusal_of_the_service_is_told_in_its_words(
    serve: Callable[..., Running], visit: Callable[..., Visit], small_photo: bytes
) -> None:
    tab = visit(serve(max_pixels=1000).url)
    tab.choose(small_photo)
    tab.ask("the dog", state="failed")
    assert "SEGVLM_MAX_PIXELS" in tab.trouble()
    assert "not answered" in tab.page.inner_text("#finds .fact")
    tab.expect_fault("status of 413")


def test_full_queue_is_told_and_tried_again(
    serve: Callable[..., Running], visit: Callable[..., Visit], small_photo: bytes
) -> None:
    running = serve(max_queue=1)
    tab = visit(running.url)
    tab.choose(small_photo)
    running.service.backend.gate.clear()
    other = threading.Thread(target=segment, args=(running.url, small_photo, ["first"]))
    other.start()
    wait_until(lambda: running.service.engine.images == 1, "the other's place")
    tab.ask("the dog", state="failed")
    assert "too many images are waiting" in tab.trouble().lower()
    assert "try again in" in tab.trouble()
    tab.expect_fault("status of 503")
    running.service.backend.gate.set()
    other.join()
    tab.page.click("#again")
    tab.page.locator("#finds li.found").wait_for()
    assert tab.page.is_hidden("#trouble")


def problem(route: Route, status: int, detail: str, **headers: str) -> None:
    body = {"title": "Not now", "status": status, "detail": detail, "reason": "a_reason"}
    route.fulfill(
        status=status,
        body=json.dumps(body),
        headers={"Content-Type": "application/problem+json", **headers},
    )


def test_limit_of_a_key_and_a_lost_service(
    serve: Callable[..., Running], visit: Callable[..., Visit], small_photo: bytes
) -> None:
    tab = visit(serve().url)
    tab.choose(small_photo)
    tab.page.route(
        "**/segment", lambda route: problem(route, 429, "wait a while", **{"Retry-After": "7"})
    )
    tab.ask("the dog", state="failed")
    assert tab.trouble() == "Not now. Wait a while. You can try again in 7 s."
    tab.expect_fault("status of 429")
    tab.page.unroute("**/segment")
    tab.page.route("**/segment", lambda route: route.abort())
    tab.page.click("#again")
    tab.page.locator("#trouble", has_text="cannot be reached").wait_for()
    tab.expect_fault("ERR_FAILED")


def test_key_is_asked_for_sent_and_kept_in_the_tab_only(
    serve: Callable[..., Running], visit: Callable[..., Visit], small_photo: bytes
) -> None:
    tab = visit(serve().url)
    tab.choose(small_photo)

    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer open sesame":
            route.continue_()
        else:
            problem(route, 401, "send a key")

    tab.page.route("**/segment", guard)
    tab.ask("the dog", state="failed")
    tab.expect_fault("status of 401")
    assert "Send a key." in tab.trouble()
    tab.page.fill("#key", "open sesame")  # visible now
    tab.page.click("#again")
    tab.page.locator("#finds li.found").wait_for()
    snippet = tab.page.inner_text("#snippet")
    assert "Bearer $SEGVLM_KEY" in snippet
    assert "sesame" not in snippet
    kept = tab.page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]")
    assert kept == [1, 0, ""]


# -- what is taken away -------------------------------------------------------------------------


def test_downloads_hold_the_masks_of_the_service(
    serve: Callable[..., Running], visit: Callable[..., Visit], drawing: Any, tmp_path: Path
) -> None:
    running = serve()
    tab = visit(running.url)
    body = drawing.encoded()
    tab.choose(body)
    words = ["the dog", "the blue one"]
    for each in words:
        tab.ask(each)
    tab.slide("threshold", 0.3)
    exact = segment(running.url, body, words, threshold=0.3)["results"]
    assert tab.download_json("#save-rle", tmp_path)["results"] == exact
    coco = COCO(tab.download("#save-coco", tmp_path))
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == words
    assert coco.loadImgs(1)[0]["file_name"] == "photo.png"
    for annotation, result in zip(coco.loadAnns(coco.getAnnIds()), exact, strict=True):
        mask = coco_mask.decode(result["mask"])
        assert (coco.annToMask(annotation) == mask).all()
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == coco_mask.toBbox(result["mask"]).tolist()
    path = tab.download("[aria-label='Download the mask of the dog as PNG']", tmp_path)
    assert path.name == "photo-the-dog.png"
    png = np.asarray(Image.open(path)).astype(bool)
    assert (png == coco_mask.decode(exact[0]["mask"])).all()
    picture = Image.open(tab.download("#save-picture", tmp_path)).convert("RGB")
    assert (np.asarray(picture) == tab.canvas()).all()


def test_what_is_shown_to_type_works(
    serve: Callable[..., Running], visit: Callable[..., Visit], tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl to run what the page shows; on Debian: apt-get install curl")
    tab = visit(serve().url)
    tab.page.click("[data-sample='coffee.jpg']")
    words = ["red", '@it\'s "odd"; $HOME', "la taza más grande"]
    for each in words:
        tab.ask(each)
    tab.slide("threshold", 0.35)
    command = tab.page.inner_text("#snippet")
    finished = subprocess.run(
        ["bash", "-ec", command], cwd=tmp_path, capture_output=True, check=True, timeout=60
    )
    answer = json.loads(finished.stdout)
    assert [result["expression"] for result in answer["results"]] == words
    tab.page.check("input[value=python]", force=True)
    program = tab.page.inner_text("#snippet")
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=True, timeout=60
    )
    lines = finished.stdout.decode().splitlines()
    for line, result in zip(lines, answer["results"], strict=True):
        assert line == f"{result['expression']} {result['score']} {result['area']} (400, 600)"
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.page.click("#copy")
    tab.page.locator("#status", has_text="Copied").wait_for()
    assert tab.page.evaluate("navigator.clipboard.readText()") == program


# -- for everybody ------------------------------------------------------------------------------


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


# -- the bundled model --------------------------------------------------------------------------


def test_with_the_bundled_model(visit: Callable[..., Visit], tmp_path: Path) -> None:
    with our_service() as (address, _):
        url = address.removesuffix("segment")
        tab = visit(url)
        tab.page.click("[data-sample='astronaut.jpg']")
        tab.page.click("#tries >> nth=0 >> button >> nth=0")
        tab.page.locator("#finds li.found").wait_for()
        tab.ask("the hair")
        assert "already known" in tab.page.inner_text("#runs li >> nth=0")
        assert "already known" not in tab.page.inner_text("#runs li >> nth=1")
        first = tab.page.inner_text("#finds .name >> nth=0")
        sample = httpx.get(f"{url}static/samples/astronaut.jpg").content
        picture = Image.open(BytesIO(sample))
        threshold = float(tab.page.input_value("#threshold"))
        usual = segment(url, sample, [first, "the hair"])["results"]
        document = tab.download_json("#save-rle", tmp_path)
        assert document["threshold"] == threshold  # the page knows the model's own
        assert document["results"] == usual
        assert document["image"] == {"width": picture.width, "height": picture.height}
