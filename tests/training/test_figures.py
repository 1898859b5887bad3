"""The figures: drawn from scores and photos, fixed, by rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from model.checkpoint import save
from model.config import preset_config
from model.segvlm import build_segvlm
from training.data.lmdb_store import PhraseStore
from training.report import build_report
from training.reporting.charts import ablation_chart, curves_chart, gains_chart, precision_chart
from training.reporting.figure_style import COLOURS, figure_style, write_figure
from training.reporting.groups import Gain, Group, Spread, gains, group_runs
from training.reporting.photo_grid import Cell, GridRow, _picture, photo_grid
from training.reporting.runs import Run, find_runs
from training.reporting.samples import unpicked_samples

METRICS = ("mean_iou", "0.5", "0.9")


@pytest.fixture
def runs(made_ablation: Path) -> list[Run]:
    return find_runs([made_ablation])[0]


@pytest.fixture
def groups(runs: list[Run]) -> list[Group]:
    return group_runs(runs)[0]


@pytest.fixture
def with_weights(made_ablation: Path) -> Path:
    """The made-up runs with untrained weights of their own configurations."""
    for run in made_ablation.iterdir():
        section = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]
        config = preset_config(section["preset"], **section["overrides"])
        save(build_segvlm(config), run / "best.safetensors")
    return made_ablation


def bars(axes: Any) -> dict[tuple[float, bool], float]:
    """Lengths of an axes' bars by their middle and whether they are filled."""
    return {
        (round(bar.get_y() + bar.get_height() / 2, 2), bar.get_hatch() is None): bar.get_width()
        for bar in axes.patches
    }


# -- charts -----------------------------------------------------------------------------------


def test_figure_3_draws_what_was_measured_filled(groups: list[Group]) -> None:
    with figure_style():
        axes = ablation_chart(groups).axes
    assert [each.get_title(loc="left") for each in axes] == ["mean IoU (%)", "P@50 (%)", "P@90 (%)"]
    found = bars(axes[0])
    assert [found[place - 0.19, True] for place in range(4)] == pytest.approx([21, 32, 29, 41])
    assert [found[place + 0.19, False] for place in range(4)] == [43.57, 48.25, 51.34, 53.87]


def test_figure_3_leaves_a_missing_row_empty(groups: list[Group]) -> None:
    with figure_style():
        axes = ablation_chart(groups[:2]).axes
    assert sorted(place for place, filled in bars(axes[0]) if filled) == [-0.19, 0.81]


def test_figure_5_shows_a_loss_as_a_loss(groups: list[Group]) -> None:
    with figure_style():
        axes = gains_chart(gains(groups, METRICS), groups).axes
    assert bars(axes[0])[0.81, True] == pytest.approx(-3)
    assert any(text.get_text() == "−3.0" for text in axes[0].texts)


def test_a_number_stays_inside_its_panel(groups: list[Group]) -> None:
    """Also beyond the widest whisker, on either side of zero."""
    wide = [Gain("raf", metric, Spread((-30.0, 30.0, 3.0)), True) for metric in METRICS]
    low = [Gain("se", metric, Spread((-25.0, -24.0)), True) for metric in METRICS]
    with figure_style():
        figure = gains_chart([*wide, *low], groups)
        figure.canvas.draw()
        for axes in figure.axes:
            frame = axes.get_window_extent()
            for text in axes.texts:
                box = text.get_window_extent()
                assert frame.x0 - 12 <= box.x0 and box.x1 <= frame.x1 + 12, text.get_text()


def test_figure_4_has_a_line_for_each_group_and_peer(groups: list[Group]) -> None:
    with figure_style():
        axes = precision_chart(groups).axes[0]
    lines = {str(line.get_label()): line for line in axes.lines}
    ours = lines["+ RAF loss (n = 2)"]
    assert list(ours.get_ydata()) == pytest.approx([32, 25.6, 19.2, 12.8, 6.4])
    assert ours.get_color() == COLOURS["raf"]
    assert list(lines["MDETR ENB3 (Table 1)"].get_ydata()) == [57.5, 39.9, 11.9]
    assert {"SegVLM (Table 1)", "SegVLM (Table 2)"} <= lines.keys()


def test_curves_draw_every_run(runs: list[Run]) -> None:
    with figure_style():
        total, entropy, validation = curves_chart(runs).axes
    assert len(total.lines) == len(entropy.lines) == len(validation.lines) == 8
    assert list(total.lines[0].get_xdata()) == [1, 2, 3, 4, 5, 6]
    assert total.lines[0].get_ydata()[0] == pytest.approx(2.0)


def test_the_same_figure_has_the_same_bytes(groups: list[Group], tmp_path: Path) -> None:
    with figure_style():
        for name in ("first", "second"):
            write_figure(ablation_chart(groups), tmp_path / name, "figure")
    for suffix in ("png", "pdf"):
        first, second = (
            (tmp_path / name / f"figure.{suffix}").read_bytes() for name in ("first", "second")
        )
        assert first == second
    assert Image.open(tmp_path / "first" / "figure.png").width == 1440  # 7.2 inches at 200 dpi


# -- photos -----------------------------------------------------------------------------------


def test_samples_are_taken_by_rule(tiny_store: Path) -> None:
    store = PhraseStore(tiny_store)
    samples = unpicked_samples(store, "train", 5)
    assert len({sample.image_id for sample in samples}) == len(samples) == 5
    again = unpicked_samples(store, "train", 3)
    assert [each.phrase for each in again] == [each.phrase for each in samples[:3]]
    assert all(sample.target.shape == sample.image.shape[:2] for sample in samples)
    assert len(unpicked_samples(store, "val", 50)) == 3
    with pytest.raises(ValueError, match="no phrases in split 'test'"):
        unpicked_samples(store, "test", 3)


def test_a_mask_is_painted_and_the_rest_greyed() -> None:
    photo = np.full((40, 40, 3), (200, 40, 40), dtype=np.uint8)
    mask = np.zeros((40, 40), dtype=bool)
    mask[10:30, 10:30] = True
    shown = _picture(Cell(photo, mask, (0, 0, 255)), 40).astype(int)
    assert shown[20, 20, 2] - shown[20, 20, 0] > 100
    assert abs(shown[2, 2, 0] - shown[2, 2, 1]) < 60 < 160
    assert tuple(shown[20, 9]) == (0, 0, 255) and tuple(shown[20, 8]) == (255, 255, 255)
    outlined = _picture(Cell(photo, mask, (0, 0, 255), filled=False), 40)
    assert (outlined[20, 20] == photo[20, 20]).all() and (outlined[2, 2] == photo[2, 2]).all()
    assert tuple(outlined[20, 8]) == (0, 0, 255)


def test_a_grid_is_as_wide_as_a_page_whatever_it_says() -> None:
    cell = Cell(np.zeros((30, 60, 3), dtype=np.uint8))
    with figure_style():
        figure = photo_grid([GridRow("word " * 200, [cell] * 3)], ["a", "b", "c"], ["told " * 90])
    assert figure.get_size_inches()[0] == pytest.approx(7.2)
    assert len(figure.axes) == 3


def test_photos_come_with_a_store_and_weights(
    with_weights: Path, tiny_store: Path, tmp_path: Path
) -> None:
    out, scores = tmp_path / "report", with_weights / "se-seed0" / "scores.json"
    report = build_report(
        [with_weights],
        out,
        data=tiny_store,
        generalisation={"COCO": scores},
        generalisation_data={"COCO": tiny_store},
    )
    drawn = sorted(path.stem for path in report.files if path.suffix == ".png")
    numbered = [f"figure{number}" for number in range(3, 9)]
    assert drawn == sorted(["curves", *numbered, "figure7_masks"])
    assert report.left_out == ()
    for name in drawn:
        assert np.asarray(Image.open(out / "figures" / f"{name}.png").convert("L")).std() > 10
        assert (out / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    text = (out / "report.html").read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == 3 and text.count("data:image/png") == 5
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert content["measured"]["generalisation"]["COCO"]["mean_iou"] == 0.40


def test_a_row_without_weights_is_named(
    with_weights: Path, tiny_store: Path, tmp_path: Path
) -> None:
    for run in ("raf-seed0", "raf-seed1", "se-seed0"):
        (with_weights / run / "best.safetensors").unlink()
    chosen = [with_weights / f"{row}-seed{seed}" for row in ("raf", "se") for seed in (0, 1)]
    report = build_report(chosen, tmp_path / "report", data=tiny_store)
    assert any("Figure 6, + RAF loss: left out" in line for line in report.left_out)
    assert (tmp_path / "report" / "figures" / "figure8.png").is_file()  # by se-seed1
