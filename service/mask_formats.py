"""Masks in the forms that an answer can hold: COCO RLE, PNG, polygons, and drawn on the photo.

Coordinates are those of pixel edges, so a box or an outline around a single pixel has an area of 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from typing import TypedDict, cast

import contourpy
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from service.errors import NotAcceptable
from service.placed_mask import PlacedMask

Ring = list[tuple[int, int]]
OuterOffsets = tuple[list[NDArray[np.float64]], list[NDArray[np.uint32]]]

# Okabe and Ito's colours, which most colour-blind people can tell apart.
_PALETTE = (
    (213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233),
)  # fmt: skip
_LONGEST_JPEG_SIDE = 65_500  # libjpeg's own limit
_TINT = 115  # of 255: how much of the colour covers the photo


class CompressedRle(TypedDict):
    """What `pycocotools.mask.decode` takes: size (H, W) and the counts as ASCII."""

    size: list[int]
    counts: str


@dataclass(frozen=True, slots=True)
class Polygon:
    """One 4-connected region: its outline and the outlines of its holes, none closed explicitly."""

    exterior: Ring
    holes: list[Ring] = field(default_factory=list)


def encode_rle(mask: PlacedMask) -> CompressedRle:
    """COCO's compressed run-length encoding, of the mask at the photo's size."""
    size = [mask.height, mask.width]
    counts = np.diff(mask.changes(), prepend=0, append=mask.height * mask.width)
    encoded = coco_mask.frPyObjects({"size": size, "counts": counts.tolist()}, *size)
    return {"size": size, "counts": encoded["counts"].decode("ascii")}


def encode_png(mask: PlacedMask) -> bytes:
    """A 1-bit greyscale PNG of the photo's size, white where the mask is."""
    picture = Image.new("1", (mask.width, mask.height))
    if mask.window.size:
        picture.paste(Image.fromarray(mask.window), (mask.left, mask.top))
    return _png(picture)


def encode_probability(probability: NDArray[np.float32]) -> bytes:
    """Probabilities in [0, 1], (H, W), as an 8-bit greyscale PNG: probability = value / 255."""
    return _png(Image.fromarray(np.rint(probability * 255).astype(np.uint8)))


def polygons(mask: PlacedMask) -> list[Polygon]:
    """The exact outlines of the mask, along pixel edges, one polygon for each region.

    Every vertex is a corner between pixels, with integer coordinates. The areas, holes
    subtracted, sum to the mask's area; drawing them by pixel centres gives the mask back. Regions
    that touch only at a corner are polygons of their own.
    """
    box = mask.box()
    if box is None:
        return []
    cut = np.pad(mask.cut(box), 1)
    generator = contourpy.contour_generator(
        z=cut.astype(np.float32), fill_type=contourpy.FillType.OuterOffset
    )
    # The fill type fixes the form: for each region its points, and where in them each ring starts.
    regions = cast("OuterOffsets", generator.filled(0.5, 1.5))
    # contourpy counts from the centre of the padding's first pixel.
    origin = np.array([box[0] - 0.5, box[1] - 0.5])
    found = []
    for points, offsets in zip(*regions, strict=True):
        rings = [_corners(points[start:end] + origin) for start, end in pairwise(offsets)]
        found.append(Polygon(rings[0], rings[1:]))
    return found


def _corners(midpoints: NDArray[np.float64]) -> Ring:
    """Turn a closed contour through the middles of pixel edges into one along those edges.

    The contour crosses vertical edges (y is a half) and horizontal ones (x is a half). Where it
    goes from one kind to the other it cuts a corner: that at the x of the one and y of the other.
    """
    on_vertical = midpoints[:, 1] % 1 == 0.5
    turns = np.flatnonzero(on_vertical[:-1] != on_vertical[1:])
    before, after = midpoints[turns], midpoints[turns + 1]
    leaves_vertical = on_vertical[turns]
    x = np.where(leaves_vertical, before[:, 0], after[:, 0]).astype(int)
    y = np.where(leaves_vertical, after[:, 1], before[:, 1]).astype(int)
    return list(zip(x.tolist(), y.tolist(), strict=True))


class Overlay:
    """The photo with masks drawn on it: tinted, outlined and labelled, a colour for each."""

    def __init__(self, photo: Image.Image) -> None:
        """`photo`: RGB; it is drawn on."""
        self._canvas = photo
        self._labels: list[tuple[tuple[int, int], str, tuple[int, int, int]]] = []
        longest = max(self._canvas.size)
        self._line = min(max(1, round(longest / 400)), 20)
        self._font = ImageFont.load_default(min(max(11.0, longest / 45), 200.0))

    def add(self, mask: PlacedMask, label: str) -> None:
        """Draw one mask of the photo's size; an empty one leaves no trace."""
        box = mask.box()
        if box is None:
            return
        colour = _PALETTE[len(self._labels) % len(_PALETTE)]
        tint = Image.fromarray(mask.cut(box).astype(np.uint8) * _TINT)
        self._canvas.paste(colour, box, mask=tint)
        draw = ImageDraw.Draw(self._canvas)
        for polygon in polygons(mask):
            for ring in (polygon.exterior, *polygon.holes):
                draw.line([*ring, ring[0]], fill=colour, width=self._line)
        self._labels.append(((box[0], box[1]), label, colour))

    def encode(self, media_type: str) -> bytes:
        """The picture as `image/png` or `image/jpeg`, labels on top of all masks.

        Raises NotAcceptable if it is longer than a JPEG can be.
        """
        draw = ImageDraw.Draw(self._canvas)
        for corner, label, colour in self._labels:
            self._draw_label(draw, corner, label, colour)
        if media_type == "image/png":
            return _png(self._canvas)
        assert media_type == "image/jpeg", media_type
        if max(self._canvas.size) > _LONGEST_JPEG_SIDE:
            raise NotAcceptable(
                f"a JPEG has at most {_LONGEST_JPEG_SIDE} pixels on a side; accept image/png"
            )
        buffer = BytesIO()
        self._canvas.save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    def _draw_label(
        self,
        draw: ImageDraw.ImageDraw,
        corner: tuple[int, int],
        label: str,
        colour: tuple[int, int, int],
    ) -> None:
        left, top, right, bottom = draw.textbbox((0, 0), label, font=self._font)
        width, height = self._canvas.size
        margin = self._line + 2
        x = max(0, min(corner[0], width - round(right - left) - 2 * margin))
        y = max(0, min(corner[1], height - round(bottom - top) - 2 * margin))
        draw.rectangle(
            (x, y, x + right - left + 2 * margin, y + bottom - top + 2 * margin), fill=colour
        )
        draw.text((x + margin - left, y + margin - top), label, fill="white", font=self._font)


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    # Level 1: masks are nearly as small as at 6, photos encode several times faster.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
