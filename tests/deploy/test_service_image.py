"""docker/service.Dockerfile built and run: what the container answers, may do, and holds."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from tests.deploy.containers import BASE, ROOT, Container, Engine, engine
from tests.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TAG = "segvlm-service:tested"
LIMIT = 600_000_000  # bytes beyond the base


@pytest.fixture(scope="module")
def images() -> Engine:
    """An engine that has built docker/service.Dockerfile; minutes where nothing is cached."""
    found = engine()
    if isinstance(found, str):
        pytest.skip(found)
    found.build("docker/service.Dockerfile", TAG)
    return found


@pytest.fixture(scope="module")
def running(images: Engine) -> Iterator[Container]:
    with images.run(TAG) as container:
        wait_until(lambda: ready(container), "the container to be ready")
        yield container


def ready(container: Container) -> bool:
    try:
        return httpx.get(f"{container.url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def red_circle(width: int, height: int, noise: bool = False) -> bytes:
    """A PNG of it; with noise it does not get small."""
    picture = Image.new("RGB", (width, height), (120, 130, 120))
    if noise:
        grains = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        picture = Image.blend(picture, Image.fromarray(grains), 0.3)
    centre, radius = (width * 0.4, height * 0.5), height * 0.25
    ImageDraw.Draw(picture).circle(centre, radius, fill=(210, 30, 30))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def ask(container: Container, photo: bytes) -> dict[str, Any]:
    answer = httpx.post(
        f"{container.url}/segment",
        files={"image": photo},
        data={"expression": "the red circle"},
        timeout=PATIENCE,
    )
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()["results"][0]
    return result


def test_container_answers_as_the_checkout_does(running: Container, tmp_path: Path) -> None:
    photo = tmp_path / "circle.png"
    photo.write_bytes(red_circle(480, 360))
    here = subprocess.run(
        [sys.executable, "-m", "service", "segment", str(photo), "the red circle"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    expected = json.loads(here.stdout)["results"][0]
    result = ask(running, photo.read_bytes())
    assert result["area"] > 500
    assert coco.iou([result["mask"]], [expected["mask"]], [0])[0, 0] > 0.99


def test_large_upload_needs_no_disk(running: Container) -> None:
    photo = red_circle(3000, 2000, noise=True)
    assert len(photo) > 8_000_000
    assert ask(running, photo)["mask"]["size"] == [2000, 3000]


def test_process_has_no_rights_and_cannot_write(running: Container) -> None:
    status = running.execute("cat", "/proc/1/status").stdout
    assert re.search(r"^Uid:(\s+10001){4}$", status, re.M)
    assert re.search(r"^Gid:(\s+10001){4}$", status, re.M)
    for capabilities in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
        assert re.search(rf"^{capabilities}:\s+0+$", status, re.M), capabilities
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    for directory in ("/app", "/opt/segvlm", "/tmp", "/bundle"):
        tried = running.execute("touch", f"{directory}/written")
        assert tried.returncode != 0 and "Read-only file system" in tried.stderr


def test_its_own_health_check_passes(images: Engine, running: Container) -> None:
    kind, *command = images.config(TAG)["Healthcheck"]["Test"]
    assert kind == "CMD"
    done = running.execute(*command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_image_says_how_it_is_to_be_run(images: Engine) -> None:
    config = images.config(TAG)
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert list(config["ExposedPorts"]) == ["8000/tcp"]
    assert config["Entrypoint"] == ["python", "-m", "service"]
    assert config["Cmd"] == ["serve"]
    assert {"SEGVLM_LOG_FORMAT=json", "ORT_DISABLE_TELEMETRY=1"} <= set(config["Env"])
    assert not [name for name in config["Env"] if re.search("KEY|SECRET|TOKEN|PASSWORD", name)]


def test_image_holds_what_it_needs_and_no_more(images: Engine) -> None:
    base, ours = images.files(BASE), images.files(TAG)
    beyond = sum(ours.values()) - sum(base.values())
    print(f"{beyond / 1e6:.0f} MB beyond the base")
    assert 0 < beyond <= LIMIT
    new = {path for path in ours if path not in base}
    assert "/app/model/bundles/segvlm-lite/config.json" in new
    assert "/opt/segvlm/lib/python3.11/site-packages/onnxruntime/__init__.py" in new
    unwanted = re.compile(r"/(training|tests|benchmarks|runs|build|\.git|\.cache|\.env)(/|$)")
    not_of_packages = [path for path in sorted(new) if "/site-packages/" not in path]
    assert [path for path in not_of_packages if unwanted.search(path)] == []
    packages = {path.split("/site-packages/")[1] for path in new if "/site-packages/" in path}
    assert {p for p in packages if re.match(r"(torch|triton|nvidia|pip)\b", p)} == set()
    compiled = {path for path in new if path.startswith("/app/") and path.endswith(".pyc")}
    sources = {path for path in new if path.startswith("/app/") and path.endswith(".py")}
    assert len(compiled) == len(sources) > 0


def test_stop_finishes_what_was_accepted_and_ends_well(images: Engine) -> None:
    answers: list[int] = []
    with images.run(TAG) as container:
        wait_until(lambda: ready(container), "the container to be ready")
        photo = red_circle(3000, 2000, noise=True)

        def post() -> None:
            data = {"expression": [f"thing {number}" for number in range(32)]}
            url = f"{container.url}/segment"
            answer = httpx.post(url, files={"image": photo}, data=data, timeout=PATIENCE)
            answers.append(answer.status_code)

        thread = threading.Thread(target=post)
        thread.start()
        wait_until(lambda: in_flight(container) > 0, "the request to be accepted")
        assert container.terminate() == 0
        thread.join(PATIENCE)
    assert answers == [200]


def in_flight(container: Container) -> float:
    text = httpx.get(f"{container.url}/metrics", timeout=PATIENCE).text
    found = re.search(r"^segvlm_admitted_images (\S+)$", text, re.M)
    assert found
    return float(found[1])
