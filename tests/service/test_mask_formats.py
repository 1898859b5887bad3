"""Every form of a mask can be turned back into the mask."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from service import mask_formats
from service.errors import NotAcceptable
from service.mask_formats import Overlay, Polygon, Ring
from service.placed_mask import PlacedMask

# pycocotools 2.0.11 hands numpy 2 an object of the old protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Mask = NDArray[np.bool_]

any_mask = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=9))


def placed(mask: Mask) -> PlacedMask:
    """The mask as a window with a margin where there is room, as the service makes them."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return PlacedMask(np.zeros((0, 0), dtype=bool), 0, 0, *mask.shape)
    top, left = max(0, rows[0] - 1), max(0, columns[0] - 2)
    return PlacedMask(mask[top : rows[-1] + 2, left : columns[-1] + 2], top, left, *mask.shape)


def blobs(height: int, width: int, seed: int) -> Mask:
    """Smooth regions, some with holes, some at the border."""
    noise = np.random.default_rng(seed).normal(size=(6, 6)).astype(np.float32)
    smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth) > 0.2


def rasterise(polygons: list[Polygon], height: int, width: int) -> Mask:
    """Even-odd rule at the centres of pixels, straight from the definition."""
    inside = np.zeros((height, width), dtype=bool)
    x = np.arange(width) + 0.5
    for row in range(height):
        for polygon in polygons:
            for ring in (polygon.exterior, *polygon.holes):
                inside[row] ^= crossings(ring, x, row + 0.5) % 2 == 1
    return inside


def crossings(ring: Ring, x: NDArray[np.float64], y: float) -> NDArray[np.int64]:
    """How many edges of the ring lie to the left of each x on the line at y."""
    count = np.zeros(len(x), dtype=np.int64)
    for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
        if (y0 <= y) != (y1 <= y):
            count += x0 + (y - y0) * (x1 - x0) / (y1 - y0) < x
    return count


def shoelace(ring: Ring) -> float:
    x, y = np.array(ring, dtype=float).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def iou(first: Mask, second: Mask) -> float:
    return float((first & second).sum() / (first | second).sum())


@settings(deadline=None)
@given(any_mask)
def test_rle_is_what_pycocotools_decodes(mask: Mask) -> None:
    rle = mask_formats.encode_rle(placed(mask))
    assert rle["size"] == list(mask.shape)
    np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), mask)


@settings(deadline=None)
@given(any_mask)
def test_a_window_is_its_mask(mask: Mask) -> None:
    for form in (placed(mask), PlacedMask.whole(mask)):
        np.testing.assert_array_equal(form.full(), mask)
        assert form.area == mask.sum()
        assert mask_formats.encode_rle(form) == mask_formats.encode_rle(placed(mask))
        box = form.box()
        if box is not None:
            x0, y0, x1, y1 = box
            np.testing.assert_array_equal(form.cut(box), mask[y0:y1, x0:x1])


@settings(deadline=None)
@given(any_mask)
def test_png_has_one_bit_and_the_mask_in_white(mask: Mask) -> None:
    picture = Image.open(BytesIO(mask_formats.encode_png(placed(mask))))
    assert picture.mode == "1"
    np.testing.assert_array_equal(np.asarray(picture), mask)


@settings(deadline=None)
@given(any_mask)
def test_polygons_are_exact(mask: Mask) -> None:
    """Also where regions touch only at a corner, at the border, and inside holes."""
    polygons = mask_formats.polygons(placed(mask))
    np.testing.assert_array_equal(rasterise(polygons, *mask.shape), mask)
    area = sum(shoelace(p.exterior) - sum(map(shoelace, p.holes)) for p in polygons)
    assert area == mask.sum()


@pytest.mark.parametrize("seed", range(4))
def test_polygons_mean_the_same_to_another_rasteriser(seed: int) -> None:
    mask = blobs(160, 210, seed)
    height, width = mask.shape
    drawn = np.zeros_like(mask)
    for polygon in mask_formats.polygons(placed(mask)):
        rings = [[c for point in r for c in point] for r in (polygon.exterior, *polygon.holes)]
        for index, ring in enumerate(rings):
            part = coco_mask.decode(coco_mask.frPyObjects([ring], height, width))[..., 0] == 1
            drawn = drawn & ~part if index else drawn | part
    assert iou(drawn, mask) >= 0.98


def test_hole_is_a_hole_and_an_island_in_it_a_region() -> None:
    mask = np.zeros((7, 8), dtype=bool)
    mask[1:6, 1:6] = True
    mask[2:5, 2:5] = False
    mask[3, 3] = True
    ring, island = sorted(
        mask_formats.polygons(placed(mask)), key=lambda p: len(p.holes), reverse=True
    )
    assert sorted(ring.exterior) == [(1, 1), (1, 6), (6, 1), (6, 6)]
    assert [sorted(hole) for hole in ring.holes] == [[(2, 2), (2, 5), (5, 2), (5, 5)]]
    assert sorted(island.exterior) == [(3, 3), (3, 4), (4, 3), (4, 4)]
    assert island.holes == []


def test_single_pixel_has_area_one_in_box_and_polygon() -> None:
    mask = np.zeros((5, 5), dtype=bool)
    mask[2, 3] = True
    assert placed(mask).box() == (3, 2, 4, 3)
    assert shoelace(mask_formats.polygons(placed(mask))[0].exterior) == 1.0


def test_empty_mask_has_no_box_and_no_polygon() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    assert placed(mask).box() is None
    assert mask_formats.polygons(placed(mask)) == []


def test_probability_survives_to_half_a_step_of_255() -> None:
    probability = np.random.default_rng(0).random((30, 40), dtype=np.float32)
    picture = Image.open(BytesIO(mask_formats.encode_probability(probability)))
    assert picture.mode == "L"
    assert np.abs(np.asarray(picture) / 255 - probability).max() <= 0.5 / 255 + 1e-6


def test_overlay_tints_the_mask_and_leaves_the_rest() -> None:
    photo = np.full((120, 160, 3), 128, dtype=np.uint8)
    mask = np.zeros((120, 160), dtype=bool)
    mask[60:100, 40:120] = True
    overlay = Overlay(Image.fromarray(photo))
    overlay.add(placed(mask), "it")
    drawn = np.asarray(Image.open(BytesIO(overlay.encode("image/png"))))
    assert (drawn[:50] == 128).all()
    assert (drawn[102:] == 128).all()
    assert (drawn[85:98, 50:110] != 128).any(axis=-1).all()


def test_overlay_of_nothing_is_the_photo() -> None:
    photo = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    overlay = Overlay(Image.fromarray(photo))
    overlay.add(placed(np.zeros((20, 30), dtype=bool)), "nothing")
    np.testing.assert_array_equal(
        np.asarray(Image.open(BytesIO(overlay.encode("image/png")))), photo
    )


def test_overlay_too_long_for_a_jpeg_says_so() -> None:
    overlay = Overlay(Image.new("RGB", (65_501, 1)))
    with pytest.raises(NotAcceptable, match="image/png"):
        overlay.encode("image/jpeg")
    assert overlay.encode("image/png")


@pytest.mark.parametrize("shape", [(1, 1), (1, 40_000), (40_000, 1), (3, 5)])
@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg"])
def test_overlay_of_extreme_shapes(shape: tuple[int, int], media_type: str) -> None:
    overlay = Overlay(Image.new("RGB", shape[::-1]))
    overlay.add(
        placed(np.ones(shape, dtype=bool)), "all of it, with a label longer than the picture"
    )
    with Image.open(BytesIO(overlay.encode(media_type))) as picture:
        assert picture.size == (shape[1], shape[0])
