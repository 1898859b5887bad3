"""The page and the model that the repository ships, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import httpx2 as httpx
from PIL import Image

from benchmarks.served import our_service
from tests.service.page.visits import Visit, segment


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
        told = tab.page.locator("#finds .fact").all_inner_texts()
        assert [each.split(",")[0] for each in told] == [
            f"score {result['score']:.2f}" for result in usual
        ]
        document = tab.download_json("#save-rle", tmp_path)
        assert document["threshold"] == threshold  # the page knows the model's own
        assert document["results"] == usual
        assert document["image"] == {"width": picture.width, "height": picture.height}
