"""The report as a whole: measured beside quoted, never mixed; whole pages; one clear line."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from training.__main__ import main
from training.report import Report, build_report
from training.reporting.groups import group_runs
from training.reporting.published import PEERS, TABLE1, TABLE2, contradictions
from training.reporting.runs import find_runs
from training.reporting.score_tables import ablation_table, comparison_table, gains_table
from training.reporting.tables import Table


@pytest.fixture(scope="module")
def report(finished_ablation: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build_report([finished_ablation], tmp_path_factory.mktemp("report"))


def written(report: Report, name: str) -> str:
    """Content of a file of the report."""
    (path,) = (path for path in report.files if path.name == name)
    return path.read_text(encoding="utf-8")


def tables_of(made_ablation: Path) -> tuple[Table, Table]:
    groups, _ = group_runs(find_runs([made_ablation])[0])
    return comparison_table(groups), ablation_table(groups)


def rescored(made_ablation: Path, factor: float) -> None:
    """Make every made-up score another one."""
    for path in made_ablation.glob("*/scores.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        overall = content["all"]
        overall["mean_iou"] *= factor
        overall["precision"] = {key: factor * each for key, each in overall["precision"].items()}
        path.write_text(json.dumps(content), encoding="utf-8")


# -- tables -----------------------------------------------------------------------------------


def test_every_row_says_whether_it_was_measured(made_ablation: Path) -> None:
    for table in tables_of(made_ablation):
        place = table.header.index("origin")
        assert {row.cells[place] for row in table.rows} == {"measured", "quoted"}
        assert all(row.cells[place] == row.origin for row in table.rows)
        place = table.header.index("scored on")
        for row in table.rows:
            told = "NOT PhraseCut test" if row.origin == "measured" else "PhraseCut test"
            assert row.cells[place].startswith(told)


def test_nothing_measured_is_written_down_beforehand(made_ablation: Path) -> None:
    before = tables_of(made_ablation)
    rescored(made_ablation, 0.5)
    for old, new in zip(before, tables_of(made_ablation), strict=True):
        for first, second in zip(old.rows, new.rows, strict=True):
            assert (first.cells == second.cells) is (first.origin == "quoted")


def test_table_2_has_the_paper_and_ours_row_by_row(made_ablation: Path) -> None:
    _, table = tables_of(made_ablation)
    column = table.header.index("mean IoU")
    found = [(row.origin, row.cells[column]) for row in table.rows]
    assert found == [
        ("quoted", "43.57"),
        ("measured", "21.00 ± 1.00"),
        ("quoted", "48.25"),
        ("measured", "32.00 ± 2.00"),
        ("quoted", "51.34"),
        ("measured", "29.00 ± 0.00"),
        ("quoted", "53.87"),
        ("measured", "41.00 ± 1.00"),
    ]


def test_table_1_has_our_segvlm_and_the_peers(made_ablation: Path) -> None:
    table, _ = tables_of(made_ablation)
    measured = [row.cells for row in table.rows if row.origin == "measured"]
    assert [(cells[0], cells[2], cells[3]) for cells in measured] == [
        ("+ SE (= SegVLM)", "2", "41.00 ± 1.00")
    ]
    quoted = [row.cells[0] for row in table.rows if row.origin == "quoted"]
    assert quoted == [row.system for row in (*TABLE1, *PEERS)]
    told = " ".join(table.notes)
    assert "not comparable with the quoted rows" in told
    assert "6 steps instead of 50 epochs" in told


def test_a_missing_row_is_shown_as_missing(made_ablation: Path) -> None:
    for path in made_ablation.glob("se-seed*/scores.json"):
        path.unlink()
    _, table = tables_of(made_ablation)
    assert table.rows[-1].cells[2:4] == ("0", "–")
    assert table.rows[-1].cells[-1] == "no such run"


def test_gains_without_runs_are_the_papers_alone() -> None:
    table = gains_table([], ["mean_iou"])
    assert [row.cells[-1] for row in table.rows] == ["+4.68", "+3.09", "+2.53"]
    assert {row.origin for row in table.rows} == {"quoted"}


def test_the_papers_contradictions_are_told() -> None:
    told = " ".join(contradictions())
    for number in ("58.23", "57.10", "40.81", "36.00", "12.64", "10.30", "63 million", "161.25"):
        assert number in told
    assert TABLE1[-1].mean_iou == TABLE2[-1].mean_iou


# -- pages ------------------------------------------------------------------------------------


class Pictures(HTMLParser):
    """Collects every address that a page would load, and checks that elements close."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [str(value) for name, value in attrs if name in {"src", "href", "srcset"}]
        if tag not in {"meta", "img", "link", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_without_another_host(report: Report) -> None:
    text = written(report, "report.html")
    page = Pictures()
    page.feed(text)
    assert page.open == []
    inlined = [address for address in page.loaded if not address.startswith("#")]
    assert len(inlined) == 4  # curves, figures 3, 4 and 5
    assert all(address.startswith("data:image/") for address in inlined)
    assert "http" not in re.sub(r"base64,[^\"]+", "", text)
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    anchors = set(re.findall(r'id="([^"]+)"', text))
    assert {address[1:] for address in page.loaded if address.startswith("#")} <= anchors


def test_markdown_links_to_what_was_written(report: Report) -> None:
    text = written(report, "report.md")
    linked = set(re.findall(r"\(figures/([^)]+)\)", text))
    assert linked == {path.name for path in report.files if path.parent.name == "figures"}
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") >= 6 for line in rows)


def test_json_keeps_measured_and_quoted_apart(report: Report) -> None:
    content = json.loads(written(report, "report.json"))
    groups = {group["variant"]: group for group in content["measured"]["groups"]}
    assert groups["raf"]["scores"]["mean_iou"]["values"] == pytest.approx([30, 34])
    assert groups["raf"]["phrasecut_test"] is False
    assert "53.87" not in json.dumps(content["measured"])
    assert content["quoted"]["table2"][-1]["mean_iou"] == 53.87
    assert set(content["measured"]["complexity"]) >= {"segvlm-rn101", "cris-rn101"}


def test_what_lacks_its_inputs_is_a_line(report: Report) -> None:
    told = " ".join(report.left_out)
    assert "Figures 6 and 8: left out; needs `--data STORE`" in told
    assert "Figure 7: left out; needs `--generalisation NAME=SCORES.json`" in told
    assert report.notes == ()


def test_without_scores_it_says_so_and_keeps_no_older_figure(
    made_ablation: Path, tmp_path: Path
) -> None:
    for path in made_ablation.glob("*/scores.json"):
        path.unlink()
    older = tmp_path / "report" / "figures"
    older.mkdir(parents=True)
    (older / "figure3.png").write_bytes(b"of an earlier report")
    (older / "mine.png").write_bytes(b"not the report's")
    report = build_report([made_ablation], tmp_path / "report")
    assert len(report.notes) == 8
    assert "Nothing measured" in written(report, "report.md")
    kept = sorted(path.name for path in older.iterdir())
    assert kept == ["curves.pdf", "curves.png", "mine.png"]


# -- the command ------------------------------------------------------------------------------


def test_the_command_prints_what_it_wrote(
    made_ablation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(made_ablation), "--out", str(tmp_path / "report")]) == 0
    told = capsys.readouterr().out
    assert "report.html" in told and "note: Figure 7: left out" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "no run to report on"),
        (["--generalisation", "COCO"], "reads NAME=PATH"),
        (["--generalisation", "COCO=nowhere.json"], "nowhere.json is missing"),
        (["--generalisation-data", "COCO=x.lmdb"], "which --generalisation does not"),
        (["--data", "nowhere.lmdb"], "nowhere.lmdb"),
    ],
)
def test_a_users_mistake_is_one_line(
    made_ablation: Path,
    tmp_path: Path,
    options: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = str(made_ablation if options else tmp_path / "nowhere")
    assert main(["report", runs, "--out", str(tmp_path / "report"), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error and "Traceback" not in error
