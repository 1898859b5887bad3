"""Names of parameters in official CRIS and CLIP weights and what they are called here. No torch."""

from __future__ import annotations

import re

# Every name of an official CRIS checkpoint outside its backbone begins with
# exactly one of the left column.
_CRIS_PREFIXES = {
    "neck.txt_proj.": "neck.sentence.",
    "neck.norm_layer.": "neck.gate.",
    "neck.f1_v_proj.": "neck.lateral5.",
    "neck.f2_v_proj.": "neck.lateral4.",
    "neck.f3_v_proj.": "neck.lateral3.",
    "neck.f2_cat.": "neck.merge4.",
    "neck.f3_cat.": "neck.merge3.",
    "neck.f4_proj5.": "neck.query5.",
    "neck.f4_proj4.": "neck.query4.",
    "neck.f4_proj3.": "neck.query3.",
    "neck.aggr.": "neck.aggregate.",
    "neck.coordconv.0.conv1.": "neck.coordinate_conv.",
    "neck.coordconv.1.": "neck.refine.",
    "decoder.": "decoder.",
    "proj.vis.1.0.": "projector.enhancement.spatial.",
    "proj.vis.1.1.": "projector.enhancement.norm.",
    "proj.vis.3.": "projector.conv.",
    "proj.vis.4.": "projector.mix.",
    "proj.txt.": "projector.dynamic.kernel.",
}
_CLIP_PREFIXES = {
    "visual.": "image_encoder.",
    "transformer.resblocks.": "text_encoder.blocks.",
    "token_embedding.": "text_encoder.token_embedding.",
    "ln_final.": "text_encoder.ln_final.",
}
_CLIP_TEXT_PARAMETERS = ("positional_embedding", "text_projection", "logit_scale")

CLIP_SETTINGS = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Entries of OpenAI's archives that are sizes, not weights."""


def clip_name(name: str) -> str | None:
    """What `name`, from a CLIP state dict, is called in a SegVLM; None if it has no such entry."""
    if name in _CLIP_TEXT_PARAMETERS:
        return f"text_encoder.{name}"
    return _replace_prefix(name, _CLIP_PREFIXES)


def cris_name(name: str) -> str | None:
    """What `name`, from an official CRIS state dict, is called in a SegVLM; None if unknown."""
    if name.startswith("backbone."):
        return clip_name(name.removeprefix("backbone."))
    renamed = _replace_prefix(name, _CRIS_PREFIXES)
    return renamed and re.sub(
        r"^(decoder\.layers\.\d+\.)multihead_attn\.", r"\1cross_attn.", renamed
    )


def _replace_prefix(name: str, table: dict[str, str]) -> str | None:
    for theirs, ours in table.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return None
