"""Reading run directories: what is used, what is told, what is put together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.config import preset_config
from training.ablation import ROWS
from training.losses import RafConfig
from training.reporting.groups import Group, Spread, comparable, gains, group_runs, uneven_seeds
from training.reporting.protocol import data_label, is_phrasecut_test, protocol_of
from training.reporting.runs import find_runs, read_run, read_scores
from training.reporting.variants import OTHER, variant_of


def change(path: Path, **values: Any) -> None:
    """Replace top-level keys of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **values}), encoding="utf-8")


def configure(run: Path, section: str, **values: Any) -> None:
    """Replace keys of a run's config.yaml."""
    tree = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    tree[section] |= values
    (run / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")


def groups_of(*paths: Path) -> tuple[dict[str, Group], list[str]]:
    groups, notes = group_runs(find_runs(paths)[0])
    assert len({group.variant for group in groups}) == len(groups)
    return {group.variant: group for group in groups}, notes


# -- which variant ----------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_variant_is_read_off_the_settings(row: Any) -> None:
    model = preset_config("segvlm-lite", **row.model)
    assert variant_of(model, RafConfig(**row.loss)) == row.name


@pytest.mark.parametrize(
    ("switches", "loss"),
    [
        ({"deformable": True, "residual": False, "se": False}, {}),
        ({"deformable": True}, {"focal_weight": 0.0, "dice_weight": 0.0}),
    ],
)
def test_what_the_ablation_does_not_have_is_other(switches: Any, loss: Any) -> None:
    model = preset_config("segvlm-rn101", **switches)
    assert variant_of(model, RafConfig(**loss)) == OTHER


# -- reading ----------------------------------------------------------------------------------


def test_a_directory_of_runs_is_its_runs(made_ablation: Path) -> None:
    runs, notes = find_runs([made_ablation, made_ablation / "se-seed0"])
    assert sorted(run.name for run in runs) == sorted(
        f"{row.name}-seed{seed}" for row in ROWS for seed in (0, 1)
    )
    assert notes == []
    assert all(run.finished and run.scores and len(run.train_log) == 6 for run in runs)


def test_an_unfinished_run_is_told_and_not_scored(made_ablation: Path) -> None:
    run = made_ablation / "se-seed0"
    (run / "run.json").unlink()
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    (run / "log.jsonl").write_text("\n".join(lines[:4]) + '\n{"event": "tr', encoding="utf-8")
    found, notes = read_run(run)
    assert not found.finished and found.scores is None and found.step == 4
    assert len(notes) == 1 and "unfinished, at step 4 of 6" in notes[0]


def test_a_run_of_an_older_version_ends_with_its_last_step(made_ablation: Path) -> None:
    (made_ablation / "se-seed0" / "run.json").unlink()
    assert read_run(made_ablation / "se-seed0")[0].finished


def test_steps_that_were_written_twice_count_once(made_ablation: Path) -> None:
    log = made_ablation / "se-seed0" / "log.jsonl"
    with log.open("a", encoding="utf-8") as file:
        file.write('{"event": "train", "step": 3, "loss": 7.0}\n')
    found, _ = read_run(made_ablation / "se-seed0")
    assert [row["step"] for row in found.train_log] == [1, 2, 3, 4, 5, 6]
    assert found.train_log[2]["loss"] == 7.0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "scores.json is missing"),
        ("{", "does not hold an evaluation's scores"),
        ('{"split": "val"}', "does not hold an evaluation's scores"),
        ('{"all": {"mean_iou": 53.87}}', "does not hold an evaluation's scores"),
    ],
)
def test_scores_that_cannot_be_used_name_the_command(
    made_ablation: Path, content: str | None, told: str
) -> None:
    path = made_ablation / "se-seed0" / "scores.json"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    found, notes = read_run(made_ablation / "se-seed0")
    assert found.scores is None
    assert len(notes) == 1 and told in notes[0] and "training evaluate" in notes[0]


def test_scores_in_per_cent_are_refused(made_ablation: Path) -> None:
    path = made_ablation / "se-seed0" / "scores.json"
    overall = json.loads(path.read_text(encoding="utf-8"))["all"]
    change(path, all={**overall, "mean_iou": 53.87})
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        read_scores(path)


def test_foreign_and_missing_directories_are_lines(made_ablation: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("model: {preset: unheard-of}", encoding="utf-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    runs, notes = find_runs([made_ablation, foreign, empty, tmp_path / "absent"])
    assert len(runs) == 8
    assert [note.partition(" ")[2][:10] for note in notes] == [
        "is foreign",
        "holds no r",
        "is not a d",
    ]
    with pytest.raises(ValueError, match="no run to report on"):
        find_runs([empty, foreign])


# -- putting together -------------------------------------------------------------------------


def test_a_spread_is_half_the_range() -> None:
    spread = Spread((20.0, 22.0, 27.0))
    assert (spread.mean, spread.half_range) == (23.0, 3.5)
    assert spread.to_dict()["std"] == pytest.approx(13**0.5)
    assert Spread((1.0,)).to_dict()["std"] is None


def test_seeds_of_one_variant_are_one_group(made_ablation: Path) -> None:
    groups, notes = groups_of(made_ablation)
    assert list(groups) == [row.name for row in ROWS]
    assert notes == []
    assert groups["raf"].seeds == (0, 1)
    assert groups["raf"].spreads["mean_iou"].values == pytest.approx((30, 34))
    assert groups["raf"].spreads["0.9"].mean == pytest.approx(32 / 5)
    assert groups["raf"].empty_masks == Spread((25.0, 25.0))
    assert uneven_seeds(list(groups.values())) == []


def test_gains_pair_the_seeds(made_ablation: Path) -> None:
    groups, _ = groups_of(made_ablation)
    found = {gain.variant: gain for gain in gains(groups.values(), ["mean_iou"])}
    assert list(found) == ["raf", "deformable-residual", "se"]
    assert found["raf"].spread.values == pytest.approx((10, 12))
    assert found["deformable-residual"].spread.values == pytest.approx((-1, -5))
    assert all(gain.paired for gain in found.values())


def test_without_a_common_seed_the_means_are_compared(made_ablation: Path) -> None:
    shutil.rmtree(made_ablation / "baseline-seed0")
    shutil.rmtree(made_ablation / "raf-seed1")
    groups, _ = groups_of(made_ablation)
    gain = gains(groups.values(), ["mean_iou"])[0]
    assert (gain.paired, gain.spread.num) == (False, 1)
    assert gain.spread.mean == pytest.approx(30 - 22)
    assert "different seeds" in uneven_seeds(list(groups.values()))[0]


@pytest.mark.parametrize(
    ("section", "values", "told"),
    [
        ("optim", {"lr": 0.5}, "optim.lr 0.5, not 0.001"),
        ("loss", {"focal_alpha": 0.75}, "loss.focal_alpha 0.75, not 0.25"),
    ],
)
def test_a_run_that_differs_in_more_than_its_switches_is_flagged(
    made_ablation: Path, section: str, values: dict[str, Any], told: str
) -> None:
    for seed in (0, 1):
        configure(made_ablation / f"se-seed{seed}", section, **values)
    groups, notes = groups_of(made_ablation)
    assert groups["se"].differences == (told,)
    assert len(notes) == 1 and told in notes[0]
    assert "se" not in {group.variant for group in comparable(groups.values())}
    assert "se" not in {gain.variant for gain in gains(groups.values(), ["mean_iou"])}


def test_scores_of_another_split_or_store_are_flagged(made_ablation: Path) -> None:
    for seed in (0, 1):
        scores = made_ablation / f"raf-seed{seed}" / "scores.json"
        change(scores, split="test", data={"maker": "instances", "seed": 1})
    groups, _ = groups_of(made_ablation)
    told = " ".join(groups["raf"].differences)
    assert "the scored split test, not val" in told and "the scored data" in told


def test_where_a_run_lies_and_how_it_logs_is_no_difference(made_ablation: Path) -> None:
    configure(made_ablation / "se-seed0", "run", out="elsewhere", log_every=7)
    configure(made_ablation / "se-seed0", "data", store="copied.lmdb", workers=3)
    groups, _ = groups_of(made_ablation)
    assert groups["se"].differences == () and groups["se"].seeds == (0, 1)


def test_a_second_run_of_one_seed_is_left_out(made_ablation: Path) -> None:
    shutil.copytree(made_ablation / "se-seed0", made_ablation / "se-seed0-again")
    groups, notes = groups_of(made_ablation)
    assert groups["se"].seeds == (0, 1)
    assert len(notes) == 1 and "a second run of the same settings and seed 0" in notes[0]


# -- what it rests on -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "official"),
    [
        ({"data": {"maker": "phrasecut"}, "split": "test", "num_phrases": 14354}, True),
        ({"data": None, "files": {"missing": []}, "split": "test", "num_phrases": 14354}, True),
        ({"data": {"maker": "phrasecut"}, "split": "test", "num_phrases": 14353}, False),
        ({"data": {"maker": "phrasecut"}, "split": "val", "num_phrases": 14354}, False),
        ({"data": {"maker": "instances"}, "split": "test", "num_phrases": 14354}, False),
        ({"data": None, "split": "test", "num_phrases": 14354}, False),
    ],
)
def test_only_all_of_phrasecuts_test_split_is_called_so(
    made_ablation: Path, changes: dict[str, Any], official: bool
) -> None:
    scores = {**read_scores(made_ablation / "se-seed0" / "scores.json"), **changes}
    assert is_phrasecut_test(scores) is official
    assert data_label(scores).startswith("PhraseCut test") is official


def test_the_protocol_is_the_runs_own(made_ablation: Path) -> None:
    groups, _ = groups_of(made_ablation)
    told = protocol_of(groups["se"])
    for part in (
        "NOT PhraseCut test: templated phrases, split val, 40 phrases",
        "threshold 0.4",
        "segvlm-lite at 64 x 64",
        "6 steps of 2 images x 3 phrases",
        "seeds 0, 1",
    ):
        assert part in told
