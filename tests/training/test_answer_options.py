"""What is set of a network after training: its threshold, and the side of its input."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.bundle import Bundle
from model.checkpoint import load, save
from model.config import preset_config
from model.segvlm import SegVLM
from tests.lively import lively
from training import export
from training.__main__ import main
from training.commands.checkpoint_source import (
    PAPER_THRESHOLD,
    open_checkpoint,
    refuse_answer_options,
    set_image_size,
    usual_threshold,
)
from training.export import Description
from training.import_weights import initial_model
from training.optimal_threshold import set_optimal_threshold

CONFIG = preset_config("segvlm-lite", image_size=64)


def answer(network: SegVLM) -> Tensor:
    image = torch.randint(256, (1, 64, 64, 3), generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[49406, 1929, 49407] + [0] * (CONFIG.word_length - 3)])
    with torch.inference_mode():
        return network.eval()(image.to(torch.uint8), tokens)


def opened(path: Path, values: list[float] | None) -> SegVLM:
    return open_checkpoint(
        Namespace(checkpoint=path, selection_bias=None, optimal_threshold=values)
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "plain.safetensors"
    save(lively(CONFIG), path)
    return path


def test_it_is_set_replaced_and_kept_in_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    plain = answer(opened(checkpoint, None))
    network = opened(checkpoint, [1.5, 0.0])
    moved = answer(network)
    assert not torch.allclose(plain, moved)
    save(network, tmp_path / "moved.safetensors")
    torch.testing.assert_close(answer(load(tmp_path / "moved.safetensors")), moved)
    torch.testing.assert_close(
        answer(opened(tmp_path / "moved.safetensors", [0.7, 0.0])),
        answer(set_optimal_threshold(load(checkpoint), 0.7, 0.0)),
    )


def test_such_a_network_is_asked_at_a_half(checkpoint: Path) -> None:
    assert usual_threshold(opened(checkpoint, None)) == PAPER_THRESHOLD
    assert usual_threshold(opened(checkpoint, [1.5, 0.2])) == 0.5


def test_training_goes_on_without_it(checkpoint: Path, tmp_path: Path) -> None:
    save(opened(checkpoint, [1.5, 0.2]), tmp_path / "moved.safetensors")
    model, report = initial_model(CONFIG, str(tmp_path / "moved.safetensors"))
    assert set(report.left_over) == {"optimal_threshold.factor", "optimal_threshold.least_iou"}
    torch.testing.assert_close(answer(model), answer(opened(checkpoint, None)))


@pytest.mark.parametrize("name", ["selection_bias", "optimal_threshold"])
def test_a_bundle_has_its_own(name: str) -> None:
    none: dict[str, object] = {"selection_bias": None, "optimal_threshold": None}
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is for a checkpoint"):
        refuse_answer_options(Namespace(**{**none, name: [1.0, 0.2]}))
    refuse_answer_options(Namespace(**none))


def test_values_that_make_no_threshold_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="factor of a threshold"):
        opened(checkpoint, [3.0, 0.2])


def test_another_side_than_it_was_trained_with(checkpoint: Path) -> None:
    network = opened(checkpoint, None)
    set_image_size(network, 96)
    assert network.config == replace(CONFIG, image_size=96)
    with pytest.raises(ValueError, match="multiple of 32, not 100"):
        set_image_size(network, 100)


def test_a_bundle_is_exported_at_another_side_without_its_scores(
    default_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Bundle.load(default_bundle).config
    assert known.scores
    told: list[tuple[int, Description]] = []

    def keep(
        network: SegVLM, _: object, __: object, about: Description, *___: Any, **____: Any
    ) -> Any:
        told.append((network.config.image_size, about))
        return known

    monkeypatch.setattr(export, "export_bundle", keep)
    command = ["export", "--bundle", str(default_bundle), "--out", str(tmp_path / "out")]
    assert main([*command, "--image-size", "256"]) == 0
    assert main([*command, "--image-size", str(known.image_size)]) == 0
    assert [side for side, _ in told] == [256, known.image_size]
    assert [about.scores for _, about in told] == [{}, known.scores]
    assert [about.training for _, about in told] == [known.training] * 2


def test_a_bundle_is_scored_at_its_own_side(
    default_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--bundle", str(default_bundle), "--data", str(tmp_path)]
    assert main([*command, "--image-size", "256"]) == 2
    assert "`export --bundle ... --image-size`" in capsys.readouterr().err
