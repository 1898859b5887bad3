"""Goals, the model card that is made of them, and the spread over seeds."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from model.bundle import Bundle
from training.__main__ import main
from training.evaluation_report import EvaluationReport
from training.model_card import card_parts, renewed
from training.reporting.goals import FEWEST, GOALS, Evaluation, Goal, goal_lines


@pytest.fixture
def scores(default_bundle: Path) -> dict[str, Any]:
    """What the shipped bundle carries, to be changed; layouts are the photos once more."""
    content = copy.deepcopy(Bundle.load(default_bundle).config.scores)
    content["layouts"] = copy.deepcopy({k: v for k, v in content.items() if k != "layouts"})
    return content


def verdict(content: dict[str, Any], title: str) -> str:
    (goal,) = (goal for goal in GOALS if goal.title == title)
    return goal.verdict(goal.number(Evaluation.of(content)))


def test_a_report_reads_back(scores: dict[str, Any]) -> None:
    report = EvaluationReport.from_dict(scores)
    assert EvaluationReport.from_dict(report.to_dict()) == report
    for name in ("absent", "picks"):  # an older version knew neither
        scores.pop(name, None)
    assert EvaluationReport.from_dict(scores).picks == {}
    del scores["kinds"]
    with pytest.raises(ValueError, match=r"not an evaluation's scores \(KeyError\('kinds'\)\)"):
        EvaluationReport.from_dict(scores)


@pytest.mark.parametrize(("value", "reached"), [(0.52, "yes"), (0.5199, "no")])
def test_a_bound_is_reached_or_not(scores: dict[str, Any], value: float, reached: str) -> None:
    scores["kinds"]["class"]["mean_iou"] = value
    assert verdict(scores, "class phrases") == reached


@pytest.mark.parametrize(
    ("value", "reached"), [(0.35, "yes"), (0.36, "no"), (None, "not measured")]
)
def test_a_bound_from_above(scores: dict[str, Any], value: float | None, reached: str) -> None:
    scores["probes"]["swap"]["overlap"] = value
    assert verdict(scores, "left and right exchanged, overlap") == reached


def test_a_gain_is_that_over_the_class_name(scores: dict[str, Any]) -> None:
    both = scores["probes"]["discriminative"]
    whole, only = (both[name]["kinds"]["size"] for name in ("whole", "class_name_only"))
    only["mean_iou"] = 0.3
    for value, reached in ((0.36, "yes"), (0.34, "no")):
        whole["mean_iou"] = value
        assert verdict(scores, "gain over the class name, size") == reached
    whole["num"] = FEWEST - 1
    assert verdict(scores, "gain over the class name, size") == "too few phrases (19)"
    del both["whole"]["kinds"]["size"]
    assert verdict(scores, "gain over the class name, size") == "not measured"
    scores["probes"] = None
    assert verdict(scores, "gain over the class name") == "not measured"


def test_the_worst_kind_of_layouts_is_named(scores: dict[str, Any]) -> None:
    for kind, row in scores["layouts"]["kinds"].items():
        row["mean_iou"] = 0.59 if kind == "size" else 0.8
    page = "\n".join(goal_lines(Evaluation.of(scores)))
    assert "| layouts, worst kind (size) | at least 0.600 | 0.590 | no |" in page
    del scores["layouts"]
    assert "| layouts | at least 0.700 |  | not measured |" in "\n".join(
        goal_lines(Evaluation.of(scores))
    )


def test_goals_are_told_apart() -> None:
    assert len({goal.title for goal in GOALS}) == len(GOALS)
    assert Goal("x", 0.1, lambda found: None, gain=True).asked() == "at least +0.100"


# -- the card ---------------------------------------------------------------------------------


def test_the_card_is_renewed_between_its_marks(default_bundle: Path) -> None:
    parts = {"goals": "| a |\n", "scores": "new\n"}
    end = "<!-- end -->\n"
    card = f"x\n<!-- measured: scores -->\nold\n{end}y\n<!-- measured: goals -->\n{end}"
    made = renewed(card, parts)
    assert made.startswith("x\n<!-- measured: scores -->\n\nnew\n\n<!-- end -->\ny\n")
    assert "old" not in made
    assert renewed(made, parts) == made
    for wrong in ("no marks", card + card, card.replace("goals", "goal")):
        with pytest.raises(ValueError, match="needs each of goals, scores once"):
            renewed(wrong, parts)
    assert "| weights, millions | at most 12 | " in card_parts(Bundle.load(default_bundle))["goals"]


def test_the_command_renews_a_card(
    default_bundle: Path, repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (repo_root / "docs/model-card.md").read_text("utf-8")
    card = tmp_path / "card.md"
    command = ["card", "--bundle", str(default_bundle), "--card", str(card)]
    assert main(command) == 2
    assert "there is no file" in capsys.readouterr().err
    card.write_text(whole.replace("| **all** |", "| **none** |"), encoding="utf-8")
    assert main(command) == 0
    assert card.read_text("utf-8") == whole
    assert "renewed" in capsys.readouterr().out
    assert main(command) == 0
    assert "as it was" in capsys.readouterr().out


# -- seeds ------------------------------------------------------------------------------------


def test_the_spread_over_seeds(
    scores: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for seed, value in enumerate((0.40, 0.43, 0.46)):
        scores["all"]["mean_iou"] = value
        scores["absent"]["n_acc"] = value
        (tmp_path / f"seed{seed}").mkdir()
        files.append(tmp_path / f"seed{seed}" / "scores.json")
        files[-1].write_text(json.dumps(scores), encoding="utf-8")
    page = tmp_path / "out" / "seeds.md"
    names = [str(path) for path in files]
    assert main(["seeds", *names, "--markdown", str(page)]) == 0
    told = capsys.readouterr().out
    assert told == page.read_text("utf-8")
    assert "| number | mean | spread | seed0 | seed1 | seed2 |" in told
    assert "| all phrases | 0.430 | 0.030 | 0.400 | 0.430 | 0.460 |" in told
    assert "| layouts, kind: size | " in told
    assert "| photos, absent classes: N-acc | 0.430 | 0.030 | 0.400 | 0.430 | 0.460 |" in told
    assert "photos, no target" not in told

    assert main(["seeds", names[0]]) == 2
    assert "needs two or more" in capsys.readouterr().err
    assert main(["seeds", names[0], names[0]]) == 2
    assert "the same name" in capsys.readouterr().err
    scores["data"] = {"maker": "another"}
    files[1].write_text(json.dumps(scores), encoding="utf-8")
    assert main(["seeds", *names]) == 2
    assert "seed1 was scored on other data than seed0" in capsys.readouterr().err
