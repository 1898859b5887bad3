"""docs/api.md and the README's examples say what the service really takes and answers."""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydantic import BaseModel

from service.app import create_app
from service.backends.fake import load_fake
from service.engine import Engine
from service.errors import problem_kinds
from service.metrics import Metrics
from service.schemas import SegmentOptions, SegmentResponse, SegmentResult
from service.settings import Settings


@pytest.fixture(scope="module")
def api(repo_root: Path) -> str:
    return (repo_root / "docs" / "api.md").read_text(encoding="utf-8")


def rows(markdown: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, its head and rule left out, backticks too."""
    below = markdown.split(f"# {heading}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert table, heading
    lines = table.group().splitlines()[2:]
    return [[cell.strip().replace("`", "") for cell in line.split("|")[1:-1]] for line in lines]


def test_every_setting_is_documented(api: str) -> None:
    told = {name: (default, meaning) for name, default, meaning in rows(api, "Settings")}
    assert set(told) == {f"SEGVLM_{name.upper()}" for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default, meaning = told[f"SEGVLM_{name.upper()}"]
        assert meaning == field.description
        if isinstance(field.default, bool | int | float) and name != "image_threads":
            assert json.loads(default) == field.default, name


def test_every_problem_is_documented(api: str) -> None:
    told = {(status, reason) for status, reason, _ in rows(api, "Errors")}
    assert told == {(str(kind.status), kind.reason) for kind in problem_kinds()}


def test_every_field_is_documented(api: str) -> None:
    told = {name for line in rows(api, "The answer") for name in line[0].split(", ")}
    described: set[str] = set()
    for name, field in SegmentResponse.model_fields.items():
        nested = field.annotation
        if name == "results":
            described |= {f"results[].{each}" for each in SegmentResult.model_fields} | {
                "results[]"
            }
        elif name != "timings" and isinstance(nested, type) and issubclass(nested, BaseModel):
            described |= {f"{name}.{each}" for each in nested.model_fields}
        else:
            described.add(name)
    assert told == described


def test_every_option_is_documented(api: str) -> None:
    options = api.split("| Option |", 1)[1]
    told = set(re.findall(r"^\| `(\w+)` \|", options.split("\n\n")[0], re.MULTILINE))
    assert told == set(SegmentOptions.model_fields)


def test_readme_answer_is_one_of_ours(repo_root: Path) -> None:
    readme = (repo_root / "README.md").read_text(encoding="utf-8")
    answers = re.findall(r"^```json\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert answers
    for answer in answers:
        parsed = SegmentResponse.model_validate_json(answer, strict=False)
        # Nothing is shown that the service does not answer.
        assert json.loads(answer).keys() == json.loads(parsed.model_dump_json()).keys()


def test_readme_python_runs(
    repo_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = (repo_root / "README.md").read_text(encoding="utf-8")
    programs = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert programs
    settings = Settings(backend="fake", image_threads=1)
    buffer = BytesIO()
    Image.new("RGB", (64, 48), (220, 30, 30)).save(buffer, "JPEG")
    (tmp_path / "photo.jpg").write_bytes(buffer.getvalue())
    monkeypatch.chdir(tmp_path)
    with TestClient(create_app(settings, Engine(load_fake(), settings, Metrics()))) as client:

        def post(url: str, **request: Any) -> Any:
            request.pop("timeout", None)
            return client.post(url.removeprefix("http://localhost:8000"), **request)

        monkeypatch.setattr(httpx, "post", post)
        for program in programs:
            exec(compile(program, "README.md", "exec"), {})
    assert "(48, 64)" in capsys.readouterr().out  # the mask has the photo's size
