"""Other people's clients, as their users run them, get the masks that `POST /segment` answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from service.api_keys import make_key
from tests.client_programs import PROGRAMS, run_client

EXPRESSIONS = ("the red box", "a blue ring")
CLIENTS = {"hugging-face": "hugging_face", "label-studio": "label_studio", "roboflow": "roboflow"}


@pytest.fixture
def live(make_live_service: Callable[..., Any]) -> Any:
    return make_live_service(image_size=320)


@pytest.fixture
def photo_file(photo: Any, tmp_path: Path) -> Path:
    """A JPEG whose ring would be a disc if its hole were lost."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo.encoded("JPEG", quality=95))
    return path


def ours(live: Any, photo_file: Path) -> list[dict[str, Any]]:
    """The results of POST /segment for the same photo."""
    answer = httpx.post(
        f"{live.url}/segment",
        files={"image": photo_file.read_bytes()},
        data={"expression": list(EXPRESSIONS)},
    )
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert all(result["area"] > 1000 for result in results)
    return list(results)


def run(client: str, live: Any, photo_file: Path, key: str = "none") -> str:
    arguments = [live.url, str(photo_file), str(photo_file.parent)]
    if client == "roboflow":
        arguments.append(key)
    return run_client(client, f"{CLIENTS[client]}.py", *arguments)


def picture(path: Path) -> NDArray[np.bool_]:
    with Image.open(path) as image:
        return np.asarray(image.convert("L")) > 127


def test_hugging_face(live: Any, photo_file: Path) -> None:
    printed = run("hugging-face", live, photo_file).splitlines()
    for result, line in zip(ours(live, photo_file), printed, strict=False):
        assert line == f"{result['expression']} {result['score']} (640, 400)"
        mask = picture(photo_file.parent / f"{result['expression']}.png")
        assert np.array_equal(mask, coco_mask.decode(result["mask"]).astype(bool))
    assert printed[2:] == ["1"], "with its parameters the client gets the surer of the two"


def test_roboflow(live: Any, photo_file: Path) -> None:
    run("roboflow", live, photo_file)
    answered = json.loads((photo_file.parent / "masks.json").read_text())
    for result, found in zip(ours(live, photo_file), answered["prompt_results"], strict=True):
        (prediction,) = found["predictions"]
        assert found["echo"]["text"] == result["expression"]
        assert prediction["confidence"] == result["score"]
        assert prediction["masks"]["size"] == result["mask"]["size"]
        assert prediction["masks"]["counts"] == result["mask"]["counts"]
        # What the client draws from polygons: the same, but that a contour shows no hole.
        mask = coco_mask.decode(result["mask"]).astype(bool)
        drawn = picture(photo_file.parent / f"{result['expression']}.png")
        if result["expression"] == "the red box":
            assert np.array_equal(drawn, mask)
        else:
            assert drawn[mask].all() and drawn.sum() > 1.1 * mask.sum()


def test_roboflow_brings_its_key(
    make_live_service: Callable[..., Any], photo_file: Path, tmp_path: Path
) -> None:
    key, line = make_key("robin")
    (tmp_path / "keys").write_text(line)
    guarded = make_live_service(image_size=320, api_keys_file=tmp_path / "keys")
    run("roboflow", guarded, photo_file, key)
    assert (tmp_path / "masks.json").is_file()
    with pytest.raises(AssertionError, match="401"):
        run("roboflow", guarded, photo_file, "none")


def test_label_studio(live: Any, photo_file: Path) -> None:
    """Its SDK finds nothing wrong with our prediction, or the program would have failed."""
    printed = run("label-studio", live, photo_file).splitlines()[-2:]
    for result, label, line in zip(ours(live, photo_file), ("Box", "Ring"), printed, strict=True):
        assert line == f"['{label}'] {result['score']} {result['area']}"
        mask = picture(photo_file.parent / f"{result['expression']}.png")
        assert np.array_equal(mask, coco_mask.decode(result["mask"]).astype(bool))


@pytest.mark.parametrize("client", ["hugging-face", "roboflow"])
def test_clients_show_what_was_wrong(live: Any, photo_file: Path, client: str) -> None:
    photo_file.write_bytes(b"%PDF-1.7 not a photo")
    with pytest.raises(AssertionError, match="looks like a PDF; send a"):
        run(client, live, photo_file)


@pytest.mark.parametrize("program", sorted(CLIENTS.values()))
def test_programs_are_the_documents_examples(program: str, repo_root: Path) -> None:
    api = (repo_root / "docs" / "api.md").read_text(encoding="utf-8")
    source = (PROGRAMS / f"{program}.py").read_text(encoding="utf-8")
    assert f"```python\n{source}```\n" in api


@pytest.mark.parametrize(
    ("section", "begins"),
    [
        ("Hugging Face", "[{"),
        ("Label Studio", '{"results":[{'),
        ("Roboflow", '{"prompt_results":[{'),
    ],
)
def test_curl_examples(
    section: str, begins: str, live: Any, photo_file: Path, repo_root: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    api = (repo_root / "docs" / "api.md").read_text(encoding="utf-8")
    below = api.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    (example,) = re.findall(r"^```bash\n(.*?)^```", below, re.MULTILINE | re.DOTALL)
    finished = subprocess.run(
        ["bash", "-ec", example.replace("http://localhost:8000", live.url)],
        cwd=photo_file.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert finished.stdout.startswith(begins), finished.stdout[:500]
