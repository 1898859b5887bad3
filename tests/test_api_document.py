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


# Defaults that depend on the machine or are said in words.
DEFAULTS_IN_WORDS = {
    "SEGVLM_API_KEYS_FILE": "none",
    "SEGVLM_BUNDLE": "the bundled model",
    "SEGVLM_IMAGE_THREADS": "cores, at most 4",
    "SEGVLM_MAX_BATCH_SIZE": "8 on a CPU, more on a GPU",
}


def settings_in_code() -> list[list[str]]:
    """The rows that the table of settings must have, in this order."""
    expected = []
    for name, field in Settings.model_fields.items():
        variable, default = f"SEGVLM_{name.upper()}", field.default
        shown = default if isinstance(default, str) else json.dumps(default, default=str)
        expected.append([variable, DEFAULTS_IN_WORDS.get(variable, shown), field.description or ""])
    return expected


def test_every_setting_is_documented(api: str) -> None:
    assert rows(api, "Settings") == settings_in_code()


@pytest.mark.parametrize(
    ("told", "instead"),
    [
        ("`SEGVLM_PORT`", "`SEGVLM_PROT`"),
        ("| `8000` |", "| `8080` |"),
        ("| `text` |", "| `json` |"),
        ("| the bundled model |", "| `model` |"),
        ("port to listen on; 0 takes a free one", "port to listen on"),
        ("| `SEGVLM_HOST` |", "| `SEGVLM_HOST` | | |\n| `SEGVLM_HOST` |"),
    ],
)
def test_a_difference_in_the_table_of_settings_is_noticed(
    told: str, instead: str, api: str
) -> None:
    assert api.count(told) == 1
    assert rows(api.replace(told, instead), "Settings") != settings_in_code()


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
