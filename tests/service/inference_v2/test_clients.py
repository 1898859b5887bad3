"""The protocol's own clients, unchanged, against a live service; masks are those of /segment."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pycocotools import mask as coco

from tests.client_programs import client_environment, run_client

EXPRESSIONS = ("the red one", "something blue", "the café")


@pytest.fixture
def live(make_live_service: Any) -> Any:
    return make_live_service()


@pytest.fixture
def photo_file(photo: Any, tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo.encoded("JPEG", quality=90))
    return path


@pytest.fixture
def segmented(live: Any, photo_file: Path) -> list[dict[str, Any]]:
    """What POST /segment answers."""
    answer = httpx.post(
        f"{live.url}/segment",
        files={"image": photo_file.read_bytes()},
        data={"expression": EXPRESSIONS},
    )
    assert answer.status_code == 200
    results: list[dict[str, Any]] = answer.json()["results"]
    assert all(result["area"] for result in results)
    return results


def check_way(name: str, got: dict[str, Any], segmented: list[dict[str, Any]]) -> None:
    masks = [np.ascontiguousarray(coco.decode(result["mask"])) for result in segmented]
    assert got["shape"] == [len(masks), *masks[0].shape], name
    digests = [hashlib.sha256(mask.tobytes()).hexdigest() for mask in masks]
    assert got["masks"] == digests, name
    rles = [{key: result["mask"][key] for key in ("size", "counts")} for result in segmented]
    assert got["rles"] == rles, name
    assert got["scores"] == pytest.approx([each["score"] for each in segmented], abs=1e-6), name
    assert got["id"] == "number 7", name


def test_tritonclient(live: Any, photo_file: Path, segmented: list[dict[str, Any]]) -> None:
    address = live.url.removeprefix("http://")
    arguments = (address, "fake", "1", str(photo_file), *EXPRESSIONS)
    found = json.loads(run_client("inference-v2", "triton.py", *arguments))
    assert [found[name] for name in ("live", "ready", "model ready")] == [True] * 3
    assert found["no such model ready"] is False
    assert "binary_tensor_data" in found["server"]["extensions"]
    assert found["metadata"]["versions"] == ["1"]
    assert found["config"]["max_batch_size"] == 0
    assert len(found["ways"]) == 4 * 5 + 3 + 6
    for name, way in found["ways"].items():
        check_way(name, way, segmented)
        assert way["dtypes"] == ["uint8", "float32"], name
        assert way["model"] == ["fake", "1"], name
        asked = name.startswith(("binary", "aio"))
        assert way["order"] == (["score", "mask", "rle"] if asked else ["mask", "score", "rle"])
    assert found["only the score"] == ["score"]
    assert found["pixels above 1"] == 0
    expected = {
        "model": ["404", "no-such-model"],
        "version": ["404", "'77'"],
        "output": ["422", "'depth'"],
        "input": ["422", "'expression'"],
        "timeout": ["504", "1e-06 s"],
        "statistics": ["404", "/stats"],
    }
    for name, (status, words) in expected.items():
        assert found["errors"][name][0] == status
        assert words in found["errors"][name][1]


def test_kserve(live: Any, photo_file: Path, segmented: list[dict[str, Any]]) -> None:
    arguments = (live.url, "fake", str(photo_file), *EXPRESSIONS)
    found = json.loads(run_client("inference-v2", "kserve_rest.py", *arguments))
    assert [found[name] for name in ("live", "ready", "model ready")] == [True] * 3
    assert found["no such model ready"] is False
    assert len(found["ways"]) == 3
    for name, way in found["ways"].items():
        check_way(name, way, segmented)
        assert way["model"] == "fake"
    assert "there is no model 'no-such-model' here" in found["error"]


def documented_programs(repo_root: Path) -> list[str]:
    """The Python of docs/api.md's section: asking with tritonclient, perf_analyzer's data."""
    api = (repo_root / "docs" / "api.md").read_text(encoding="utf-8")
    section = api.split("## Open Inference Protocol\n", 1)[1].split("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def test_the_example_in_the_documents(
    live: Any, photo_file: Path, segmented: list[dict[str, Any]], repo_root: Path
) -> None:
    """As it stands there, but for the server's address and the fake's name."""
    example = documented_programs(repo_root)[0].replace("photo.jpg", str(photo_file))
    address = live.url.removeprefix("http://")
    program = photo_file.with_name("example.py")
    program.write_text(example.replace("localhost:8000", address).replace("segvlm-lite", "fake"))
    height, width = segmented[0]["mask"]["size"]
    assert f"(2, {height}, {width})" in run_client("inference-v2", str(program))


def perf_analyzer() -> tuple[Path, dict[str, str]]:
    """The program, and an environment in which it finds its libraries."""
    directory = client_environment("perf-analyzer")
    program = directory / "bin" / "perf_analyzer"
    if not program.exists():
        pytest.skip("perf_analyzer is published for Linux on x86-64 only")
    libraries = {
        file.parent for name in ("cudart", "b64") for file in directory.rglob(f"lib{name}.so*")
    }
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, sorted(libraries)))}
    started = subprocess.run(
        [program, "--version"], env=environment, capture_output=True, text=True
    )
    if "libb64" in started.stderr:
        pytest.skip("perf_analyzer needs libb64.so.0d; on Debian apt-get install libb64-0d")
    return program, environment


def test_perf_analyzer(live: Any, photo_file: Path, repo_root: Path) -> None:
    program, environment = perf_analyzer()
    write_data = documented_programs(repo_root)[1]
    subprocess.run([sys.executable, "-c", write_data], cwd=photo_file.parent, check=True)
    data, report = photo_file.with_name("data.json"), photo_file.with_name("report.csv")
    # A fixed number of requests: no need for the steady rate that a busy machine may not give.
    options = ("--concurrency-range", "2", "--request-count", "60")
    address = live.url.removeprefix("http://")
    finished = subprocess.run(
        [program, "-m", "fake", "-u", address, "--input-data", data, "-f", report, *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    with report.open() as lines:
        (row,) = csv.DictReader(lines)
    assert float(row["Inferences/Second"]) > 0
    route = "/v2/models/{model}/infer"
    answered = live.service.metric("segvlm_requests_total", route=route, code="200")
    assert answered >= 60
    failed = live.service.engine.metrics.registry.get_sample_value(
        "segvlm_requests_total", {"route": route, "code": "422"}
    )
    assert not failed
