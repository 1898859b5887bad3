"""Photos as a store takes them, and a report that stays small."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.store_building import PrepareReport, fit_photo, read_photo


def save(path: Path, size: tuple[int, int], mode: str = "RGB") -> Path:
    """A smooth photo of `size` (width, height)."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    grey = (rows * 2 + columns).astype(np.uint8)
    Image.fromarray(np.stack([grey, grey // 2, 255 - grey], axis=-1)).convert(mode).save(path)
    return path


def opened(jpeg: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(jpeg))
    assert image.format == "JPEG"
    return image


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_photo_of_the_annotated_size_keeps_its_bytes(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "a.jpg", (60, 40), mode)
    fitted = fit_photo(path, 40, 60)
    assert fitted.jpeg == path.read_bytes() == read_photo(path, 40, 60)[0]
    assert (fitted.greyscale, fitted.resized_from) == (mode == "L", None)


def test_another_format_becomes_jpeg(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", (60, 40))
    content, pixels = read_photo(path, 40, 60)
    assert pixels.shape == (40, 60, 3) and fit_photo(path, 40, 60).jpeg == content
    near = np.asarray(opened(content), dtype=float) - pixels
    assert np.abs(near).max() < 12


@pytest.mark.parametrize("size", [(120, 80), (30, 20), (61, 40), (122, 80)])
def test_the_annotated_shape_in_another_size_is_resized(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = save(tmp_path / "a.jpg", size)
    fitted = fit_photo(path, 40, 60)
    assert fitted.resized_from == (size[1], size[0])
    assert opened(fitted.jpeg).size == (60, 40)
    with pytest.raises(ValueError, match=rf"a.jpg is {size[0]} x {size[1]}, annotated 60 x 40"):
        read_photo(path, 40, 60)


@pytest.mark.parametrize("size", [(40, 60), (62, 40), (60, 42), (60, 60)])
def test_another_shape_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="annotated 60 x 40"):
        fit_photo(save(tmp_path / "a.jpg", size), 40, 60)


def test_no_file_and_no_photo(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_text("not a photo")
    for read in (read_photo, fit_photo):
        with pytest.raises(ValueError, match=r"no file a\.jpg"):
            read(tmp_path / "a.jpg", 40, 60)
        with pytest.raises(ValueError, match=r"b\.jpg cannot be read"):
            read(tmp_path / "b.jpg", 40, 60)


def test_a_report_lists_a_hundred_faults_of_a_kind_and_a_thousand_in_all() -> None:
    report = PrepareReport()
    for number in range(250):
        report.list_fault("missing", f"missing {number}")
        report.list_fault("odd", f"odd {number}")
    assert len(report.faults) == 200 and report.unlisted == {"missing": 150, "odd": 150}
    report.faults += [f"fault {number}" for number in range(5000)]
    report.bound_faults()
    assert len(report.faults) == 1000 and report.unlisted["faults"] == 4200
    assert "faults: 5500" in report.text()
    assert "  and 4200 more: faults" in report.text()
