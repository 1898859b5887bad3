"""What is taken from the page: files, and commands that do the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tests.service.page.visits import Running, Visit, segment


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
    assert "score_note" not in tab.download_json("#save-rle", tmp_path)
    plain = tab.download_json("#save-coco", tmp_path)
    assert plain["info"]["description"] == "fake 1, threshold 0.5"
    tab.slide("threshold", 0.3)
    exact = segment(running.url, body, words, threshold=0.3)["results"]
    document = tab.download_json("#save-rle", tmp_path)
    assert document["results"] == exact
    note = "scores were measured at threshold 0.5; at 0.3 they are estimates"
    assert document["score_note"] == note
    coco = COCO(tab.download("#save-coco", tmp_path))
    assert coco.dataset["info"]["description"] == f"fake 1, threshold 0.3, {note}"
    assert [each["score"] for each in coco.dataset["annotations"]] == [
        each["score"] for each in exact
    ]
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
