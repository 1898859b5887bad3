"""The four commands of docs/training.md, as written there, on the miniature PhraseCut."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from training.__main__ import main
from training.run_log import read_log

# A network and a run for a few seconds; what is shown is that the commands fit together.
QUICK = [
    "optim.precision=fp32",  # quicker on processors without bfloat16
    "optim.steps=12",
    "optim.warmup_steps=2",
    "run.log_every=1",
    "run.validate_every=12",
    "model.overrides={image_size: 96, text_layers: 1, decoder_layers: 1}",
]


def _documented(repo_root: Path) -> list[list[str]]:
    """The commands under the heading "PhraseCut in four commands", without `python -m training`."""
    text = (repo_root / "docs" / "training.md").read_text(encoding="utf-8")
    block = text.split("## PhraseCut in four commands")[1].split("```bash\n")[1].split("```")[0]
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[3:] for line in lines if line]


def _run(repo_root: Path, shared_dir: Path, overrides: list[str]) -> None:
    """Run the four commands where the working directory holds what they name."""
    Path("VGPhraseCut_v0").symlink_to(shared_dir / "data" / "phrasecut" / "VGPhraseCut_v0")
    Path("training").symlink_to(repo_root / "training")
    commands = _documented(repo_root)
    assert [command[0] for command in commands] == ["prepare", "train", "evaluate", "report"]
    for command in commands:
        more = overrides if command[0] == "train" else []
        assert main([*command, *more]) == 0, shlex.join(command)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_four_commands_fit_together(workplace: Path, repo_root: Path, shared_dir: Path) -> None:
    _run(repo_root, shared_dir, QUICK)
    run = workplace / "runs" / "lite-phrasecut"
    losses = [row["loss"] for row in read_log(run / "log.jsonl") if row["event"] == "train"]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    scores = json.loads((run / "scores.json").read_text())
    assert scores["subsets"]["all"]["num"] == 80 and len(scores["subsets"]) == 31
    page = (workplace / "runs" / "report" / "report.html").read_text(encoding="utf-8")
    assert "NOT PhraseCut test" in page and "data:image/png;base64," in page


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_learns_the_miniature_by_heart(
    workplace: Path, repo_root: Path, shared_dir: Path
) -> None:
    _run(repo_root, shared_dir, [])
    run = workplace / "runs" / "lite-phrasecut"
    rows = [row for row in read_log(run / "log.jsonl") if row["event"] == "train"]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    last = [row["iou"] for row in rows[-5:]]
    assert sum(last) / len(last) > 0.9, "IoU of the training batches, at the targets' resolution"
    assert json.loads((run / "scores.json").read_text())["all"]["cum_iou"] > 0.9
