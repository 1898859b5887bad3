"""Which row of the ablation a run is, read off its settings and not off its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.config import SegVLMConfig
from training.ablation import ROWS
from training.losses import RafConfig

VARIANTS: dict[str, str] = {row.name: row.title for row in ROWS}
"""The rows of the ablation, in order, with their titles."""

OTHER = "other"
SWITCHES = ("deformable", "se", "residual")


def variant_of(model: SegVLMConfig, loss: RafConfig) -> str:
    """A key of `VARIANTS`, or `OTHER` for a combination that the ablation does not have."""
    for row in ROWS:
        same_block = all(getattr(model, name) == value for name, value in row.model.items())
        # A row that sets no loss of its own has the base's, which must be more than cross-entropy.
        same_loss = all(getattr(loss, name) == value for name, value in row.loss.items())
        if same_block and same_loss and bool(row.loss) != is_raf(loss):
            return row.name
    return OTHER


def is_raf(loss: RafConfig) -> bool:
    """Whether more than the cross-entropy counts."""
    return loss.focal_weight > 0 or loss.dice_weight > 0


def label_of(variant: str, model: SegVLMConfig, loss: RafConfig) -> str:
    """What a person reads; for `OTHER` the parts that are on."""
    if variant != OTHER:
        return VARIANTS[variant]
    parts = [name for name in SWITCHES if getattr(model, name)] or ["no enhancement"]
    return f"{'RAF' if is_raf(loss) else 'cross-entropy'}, {' + '.join(parts)}"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as {"section.key": value}; lists as tuples, so that values compare."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = _frozen(value)
    return found


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return tuple(sorted(value.items())) if isinstance(value, Mapping) else value
