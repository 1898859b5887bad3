"""What others have published, word for word, with where it stands. Nothing here was measured by us.

All scores are per cent, on PhraseCut's test split unless a row's protocol says otherwise. Precision
is keyed by the IoU threshold as `training.metrics` spells it; a missing key was not published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SEGVLM_PAPER = "SegVLM paper, arXiv 2505.19242"
PHRASECUT_PROTOCOL = "PhraseCut test"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table.

    key: the variant of ours that it corresponds to (`variants.VARIANTS`), or "" for none.
    mean_iou: per cent, or None where only a range was published (see `mean_iou_range`).
    """

    system: str
    source: str
    mean_iou: float | None
    precision: Mapping[str, float] = field(default_factory=dict)
    protocol: str = PHRASECUT_PROTOCOL
    key: str = ""
    mean_iou_range: tuple[float, float] | None = None


def _table1(system: str, mean_iou: float, *precision: float, key: str = "") -> PublishedRow:
    thresholds = ("0.5", "0.7", "0.9")
    return PublishedRow(
        system,
        f"{SEGVLM_PAPER}, Table 1",
        mean_iou,
        dict(zip(thresholds, precision, strict=bool(precision))),
        key=key,
    )


def _table2(key: str, system: str, mean_iou: float, *precision: float) -> PublishedRow:
    thresholds = ("0.5", "0.6", "0.7", "0.8", "0.9")
    return PublishedRow(
        system,
        f"{SEGVLM_PAPER}, Table 2",
        mean_iou,
        dict(zip(thresholds, precision, strict=True)),
        key=key,
    )


TABLE1: tuple[PublishedRow, ...] = (
    _table1("MattNet", 20.20, 19.70, 13.50, 3.00),
    _table1("RMI", 21.10, 22.00, 11.60, 1.50),
    _table1("HULANet", 41.30, 42.90, 27.80, 5.90),
    _table1("MDETR ENB3", 53.70, 57.50, 39.90, 11.90),
    _table1("GROUNDHOG", 54.50),
    _table1("SegVLM", 53.87, 58.23, 40.81, 12.64, key="se"),
)

TABLE2: tuple[PublishedRow, ...] = (
    _table2("baseline", "Baseline (CRIS)", 43.57, 45.10, 35.40, 25.10, 14.20, 4.10),
    _table2("raf", "+ RAF loss", 48.25, 50.70, 39.80, 29.60, 17.10, 6.50),
    _table2(
        "deformable-residual", "+ deformable + residual", 51.34, 54.30, 42.70, 33.20, 20.20, 8.20
    ),
    _table2("se", "+ SE (= SegVLM)", 53.87, 57.10, 45.10, 36.00, 22.80, 10.30),
)

# Not in the SegVLM paper's tables.
PEERS: tuple[PublishedRow, ...] = (
    PublishedRow(
        "CLIPSeg",
        "CLIPSeg's authors",
        None,
        protocol="PhraseCut test, its own protocol; the range of its variants",
        mean_iou_range=(43.4, 48.2),
    ),
    PublishedRow("LD-ZNet", "LD-ZNet's authors", 52.7),
    PublishedRow("MDETR-R101", "MDETR's authors", 53.1),
    PublishedRow("GLIPv2-T", "GLIPv2's authors", 59.4),
    PublishedRow("GLIPv2, best", "GLIPv2's authors", 61.3),
)


@dataclass(frozen=True)
class Claim:
    """A number that a paper states in its text, as printed."""

    what: str
    value: str
    source: str


PARAMETERS_CLAIM = Claim("parameters of SegVLM, millions", "about 63", f"{SEGVLM_PAPER}, text")
SPEED_CLAIM = Claim("inference speed at 416 x 416", "40 to 45", f"{SEGVLM_PAPER}, text")

CRIS_RN101_PARAMETERS = 161_251_682
"""Of the official CRIS code with CLIP RN101, counted on it; its text tower has 63.4 million."""

PAPER_PROTOCOL = {
    "image_size": 416,
    "epochs": 50,
    "images_per_batch": 64,
    "preset": "segvlm-rn101",
}
"""Section 4 of the SegVLM paper, as far as a run's own files can be held against it."""


def contradictions() -> list[str]:
    """Where the SegVLM paper disagrees with itself or with what it builds on, as sentences."""
    first, second = TABLE1[-1], TABLE2[-1]
    differing = [key for key in first.precision if first.precision[key] != second.precision[key]]
    scores = "; ".join(
        f"P@{float(key) * 100:.0f} {first.precision[key]:.2f} in Table 1 and "
        f"{second.precision[key]:.2f} in Table 2"
        for key in differing
    )
    return [
        f"The paper gives SegVLM's own precision twice, differently: {scores}. Its mean IoU is the "
        f"same in both ({first.mean_iou:.2f}).",
        f'The paper\'s text says "approximately 63 million parameters". CRIS with CLIP RN101, on '
        f"which SegVLM builds, has {CRIS_RN101_PARAMETERS / 1e6:.2f} million by itself; its text "
        "tower alone has 63.4 million.",
    ]
