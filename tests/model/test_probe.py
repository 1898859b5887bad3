"""The probe: drawn pictures, the same bytes every time, and a difference that tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.probe import EXPRESSIONS, Probe, draw_images
from model.tokenizer import clip_tokenizer


@pytest.fixture
def probe() -> Probe:
    logits = np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32)
    return Probe(draw_images(64), clip_tokenizer().encode(EXPRESSIONS, 17).tokens, logits)


@pytest.mark.parametrize("side", [32, 64, 320])
def test_pictures_are_colourful_and_two(side: int) -> None:
    images = draw_images(side)
    assert images.shape == (2, side, side, 3) and images.dtype == np.uint8
    assert images.std(axis=(1, 2)).min() > 25  # every channel of both varies
    assert np.abs(images[0].astype(int) - images[1]).mean() > 20
    assert np.array_equal(images, draw_images(side))


def test_expressions_differ_in_length() -> None:
    encoded = clip_tokenizer().encode(EXPRESSIONS, 17)
    first, second = (encoded.tokens != 0).sum(axis=1)
    assert first < second and not encoded.truncated.any()


def test_what_was_saved_is_read(tmp_path: Path, probe: Probe) -> None:
    path = tmp_path / "probe.npz"
    probe.save(path)
    read = Probe.load(path)
    assert (read.images.dtype, read.tokens.dtype) == (np.uint8, np.int64)
    assert np.array_equal(read.images, probe.images) and np.array_equal(read.tokens, probe.tokens)
    assert read.difference(probe.logits) == 0
    read.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


def test_other_files_are_refused(tmp_path: Path, probe: Probe) -> None:
    path = tmp_path / "probe.npz"
    path.write_bytes(b"PK\x03\x04 not much of an archive")
    with pytest.raises(ValueError, match=r"probe\.npz cannot be read"):
        Probe.load(path)
    np.savez(path, images=probe.images, tokens=probe.tokens)
    with pytest.raises(ValueError, match="holds"):
        Probe.load(path)
    replace(probe, logits=probe.logits.astype(np.float64)).save(path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float64"):
        Probe.load(path)
    with path.open("wb") as stream:  # a pickle could run whatever it likes
        np.savez(stream, images=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="cannot be read"):
        Probe.load(path)


def test_its_sizes_are_checked(probe: Probe) -> None:
    probe.check(64, 17)
    for side, length, told in ((96, 17, "images"), (64, 12, "tokens")):
        with pytest.raises(ValueError, match=f"its {told} are"):
            probe.check(side, length)
    broken = replace(probe, logits=np.full_like(probe.logits, np.nan))
    with pytest.raises(ValueError, match="not finite"):
        broken.check(64, 17)


def test_difference_is_in_standard_deviations(probe: Probe) -> None:
    spread = float(probe.logits.std())
    assert probe.difference(probe.logits + np.float32(spread / 4)) == pytest.approx(0.25, rel=1e-3)
    assert probe.difference(-probe.logits) == pytest.approx(2.0, rel=1e-2)
    louder = replace(probe, logits=1000 * probe.logits)
    assert louder.difference(1001 * probe.logits) == pytest.approx(1e-3, rel=1e-2)


def test_answers_of_another_kind_differ_infinitely(probe: Probe) -> None:
    assert probe.difference(probe.logits[:1]) == np.inf
    assert probe.difference(probe.logits[:, :8]) == np.inf
    wrong = probe.logits.copy()
    wrong[1, 3, 3] = np.nan
    assert probe.difference(wrong) == np.inf
