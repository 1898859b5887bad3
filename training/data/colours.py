"""Colour names measured in a mask.

Every pixel of a photo is named once, from CIE Lab (sRGB, D65): lightness and chroma separate
black, grey and white from the colours, the hue angle names the rest. Regions of the space that
people name differently (teal, maroon, skin tones, olive) carry no name, so a thing of such a
colour gets no colour phrase. Boundaries were set by hand after Lab coordinates of the CSS
colours and checked on photos with the preview sheet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

COLOUR_NAMES = (
    "black",
    "grey",
    "white",
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "beige",
)
_UNNAMED = len(COLOUR_NAMES)
_INDEX = {name: index for index, name in enumerate(COLOUR_NAMES)}


@dataclass(frozen=True)
class ColourRule:
    """From which shares of a mask on a thing has a colour.

    clear: it covers at least so much, and rival: no other colour more than this. absent: a thing
    that it covers no more than this of has it not, if near: its neighbours cover no more than that.
    """

    clear: float
    rival: float
    absent: float
    near: float


STRICT_COLOURS = ColourRule(clear=0.6, rival=0.25, absent=0.12, near=0.5)
LOOSE_COLOURS = ColourRule(clear=0.4, rival=0.3, absent=0.2, near=0.7)
"""For photos, where light and shade leave few things of one clear colour beside others."""

# Shading moves a surface between these; a thing split between two of them is not named, and a
# thing of one is not a clear counter-example to the other.
_NEIGHBOURS = {
    "black": ("grey",),
    "grey": ("black", "white"),
    "white": ("grey", "beige"),
    "red": ("pink", "orange"),
    "orange": ("red", "yellow", "brown"),
    "yellow": ("orange", "beige"),
    "green": (),
    "blue": ("purple",),
    "purple": ("blue", "pink"),
    "pink": ("red", "purple"),
    "brown": ("orange", "beige", "black"),
    "beige": ("white", "brown", "yellow"),
}


def name_pixels(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The colour of every pixel.

    Args:
        image: (H, W, 3) uint8 sRGB.

    Returns:
        (H, W) uint8, an index into `COLOUR_NAMES`, or `len(COLOUR_NAMES)` for no clear name.
    """
    lightness, a, b = _lab(image)
    chroma = np.hypot(a, b)
    hue = np.degrees(np.arctan2(b, a)) % 360
    names = np.full(image.shape[:2], _UNNAMED, dtype=np.uint8)

    def put(name: str, where: npt.NDArray[np.bool_]) -> None:
        names[where & (names == _UNNAMED)] = _INDEX[name]

    put("black", ((lightness < 14) & (chroma < 20)) | ((lightness < 27) & (chroma < 9)))
    put("white", (lightness > 79) & (chroma < 9))
    put("grey", (chroma < 8) & (lightness >= 27) & (lightness < 68))
    colourful = chroma >= 22
    put("green", (hue >= 112) & (hue < 170) & (chroma >= 14))
    put("blue", (hue >= 240) & (hue < 314) & (chroma >= 12))
    put("purple", (hue >= 314) & (hue < 345) & (chroma >= 18) & (lightness < 65))
    put("pink", ((hue >= 314) | (hue < 30)) & (lightness >= 58) & colourful)
    put("red", ((hue >= 8) & (hue < 48)) & (chroma >= 38) & (lightness < 60))
    put("yellow", (hue >= 80) & (hue < 110) & (chroma >= 38) & (lightness >= 62))
    put("orange", (hue >= 48) & (hue < 78) & (chroma >= 52) & (lightness >= 60))
    put("brown", (hue >= 38) & (hue < 85) & (chroma >= 10) & (lightness < 46))
    put("beige", (hue >= 65) & (hue < 105) & (lightness >= 66) & (chroma < 28))
    return names


def colour_shares(
    names: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Share of each colour inside a mask: (len(COLOUR_NAMES),) float64, sum at most 1."""
    inside = names[mask]
    counts = np.bincount(inside, minlength=_UNNAMED + 1)[:_UNNAMED]
    return np.asarray(counts / max(1, inside.size), dtype=np.float64)


def clear_colour(shares: npt.NDArray[np.float64], rule: ColourRule = STRICT_COLOURS) -> str | None:
    """The one colour a person would name, or None when the mask has no clear colour."""
    best = int(np.argmax(shares))
    others = np.delete(shares, best)
    if shares[best] < rule.clear or others.max() > rule.rival:
        return None
    return COLOUR_NAMES[best]


def colour_verdict(
    shares: npt.NDArray[np.float64], colour: str, rule: ColourRule = STRICT_COLOURS
) -> Literal["yes", "no", "borderline"]:
    """Whether a thing clearly has `colour`, clearly has not, or is somewhere between."""
    clear = clear_colour(shares, rule)
    if clear == colour:
        return "yes"
    if shares[_INDEX[colour]] > rule.absent:
        return "borderline"
    near = sum(shares[_INDEX[name]] for name in _NEIGHBOURS[colour])
    return "borderline" if near > rule.near else "no"


def _lab(image: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], ...]:
    """CIE Lab planes of an sRGB image, D65 white."""
    table = np.arange(256, dtype=np.float32) / 255
    linear = np.where(table <= 0.04045, table / 12.92, ((table + 0.055) / 1.055) ** 2.4)
    rgb = linear.astype(np.float32)[image]
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]],
        dtype=np.float32,
    )
    white = np.array([0.95047, 1.0, 1.08883], dtype=np.float32)
    xyz = rgb @ (to_xyz / white[:, None]).T
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return (116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2]))
