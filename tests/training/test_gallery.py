"""The gallery: fixed or unpicked expressions, drawn with the answer and what is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.__main__ import main
from training.data.lmdb_store import PhraseStore
from training.gallery import (
    NOTHING_THERE,
    PHOTO_EXPRESSIONS,
    Answered,
    Question,
    fixed_questions,
    store_questions,
)
from training.reporting.answer_tiles import answer_tiles, described


def a_question(truth: bool | None) -> Question:
    photo = np.full((60, 90, 3), 128, dtype=np.uint8)
    if truth is None:
        return Question(photo, "the cup", None)
    mask = np.zeros((60, 90), dtype=bool)
    mask[20:40, 50:80] = truth
    return Question(photo, "the cup", mask)


def an_answer(truth: bool | None, *, empty: bool = False) -> Answered:
    mask = np.zeros((60, 90), dtype=bool)
    mask[20:40, 10:40] = not empty
    return Answered(a_question(truth), mask, 0.634, 0.0 if truth else None)


def test_the_fixed_list_is_the_same_every_time(repo_root: Path, tmp_path: Path) -> None:
    photos = repo_root / "service" / "static" / "samples"
    questions = fixed_questions(photos)
    again = fixed_questions(photos)
    assert [q.expression for q in questions] == [q.expression for q in again]
    assert all((a.photo == b.photo).all() for a, b in zip(questions, again, strict=True))
    on_photos = sum(len(texts) + 1 for texts in PHOTO_EXPRESSIONS.values())
    assert sum(question.truth is None for question in questions) == on_photos - len(NOTHING_THERE)
    assert len(questions) == on_photos + 18
    with pytest.raises(ValueError, match=r"holds no astronaut\.jpg"):
        fixed_questions(tmp_path)


def test_answer_and_truth_are_both_seen() -> None:
    def count(each: Answered, channel: int) -> int:
        pixels = np.asarray(answer_tiles([each]).convert("RGB"))[30:250].astype(int)
        others = [pixels[..., k] for k in range(3) if k != channel]
        return int((pixels[..., channel] > np.maximum(*others) + 60).sum())

    both = an_answer(True)
    assert count(both, 0) > 2000  # the filled answer
    assert count(both, 1) > 200  # the truth's outline
    assert count(an_answer(True, empty=True), 0) == 0
    assert count(an_answer(None), 1) == 0


def test_a_tile_says_what_is_known() -> None:
    assert described(an_answer(True)) == "score 0.63, IoU 0.00"
    assert described(an_answer(None)) == "score 0.63"
    assert described(an_answer(False)).endswith("nothing there: wrong")
    assert described(an_answer(False, empty=True)).endswith("nothing there: right")


def test_tiles_stand_in_rows_of_five() -> None:
    one, five, six = (answer_tiles([an_answer(True)] * count).size for count in (1, 5, 6))
    assert one[0] < five[0] == six[0]
    assert one[1] == five[1] < six[1]


def test_the_command_draws_unpicked_answers(
    default_bundle: Path, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "sheet.png"
    command = ["gallery", "--bundle", str(default_bundle), "--out", str(out)]
    assert main([*command, "--count", "2"]) == 2
    assert "--split and --count are of --data" in capsys.readouterr().err
    store = ["--data", str(tiny_store)]
    assert main([*command, *store, "--count", "0"]) == 2
    assert "--count must be 1 or more" in capsys.readouterr().err
    assert main([*command, *store, "--split", "train", "--count", "3"]) == 0
    told = capsys.readouterr().out.splitlines()
    expected = store_questions(PhraseStore(tiny_store), "train", 3)
    assert [line.partition(": ")[2] for line in told[:-1]] == [q.expression for q in expected]
    first = out.read_bytes()
    assert Image.open(out).width == answer_tiles([an_answer(True)] * 3).width
    assert main([*command, *store, "--split", "train", "--count", "3"]) == 0
    assert out.read_bytes() == first
