"""The configuration of the network and its named presets. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

ImageEncoderName = Literal["clip-rn50", "clip-rn101", "efficientnet-lite0"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class SegVLMConfig:
    """Sizes and switches of a SegVLM.

    The defaults are CRIS with CLIP RN101 at 416 x 416 (Wang et al., CVPR 2022); the three switches
    `deformable`, `se` and `residual` turn its projector's first stage into SegVLM's enhancement
    block (arXiv 2505.19242, equations 1-3).

    Raises:
        ValueError: for sizes that do not fit together; the message names the field.
    """

    preset: str = "cris-rn101"
    image_size: int = 416
    """Side of the square input in pixels, a multiple of 32."""
    word_length: int = 17
    """Tokens of an expression, start and end included."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    """Normalisation of RGB values in 0..1, applied inside the network."""

    image_encoder: ImageEncoderName = "clip-rn101"
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    text_positions: int = 77
    text_embedding_width: int = 512
    """Width of the token embedding; where it is not `text_width`, a linear layer lifts it."""
    state_width: int = 512
    """Width of the sentence state."""
    text_dropout: float = 0.0

    neck_widths: tuple[int, int, int] = (256, 512, 1024)
    """Channels of p3, p4, p5; the middle one is the decoder's width."""
    decoder_layers: int = 3
    decoder_heads: int = 8
    decoder_ffn: int = 2048
    dropout: float = 0.1

    projector_width: int = 512
    """Channels of the projector's first stage (stride 8)."""
    kernel_width: int = 256
    """Channels that the language-modulated kernel is applied to (stride 4)."""
    deformable: bool = False
    se: bool = False
    residual: bool = False
    se_reduction: int = 16
    projector_skip: bool = False
    """Add sentence-gated p3 features to the projector's first stage (lite; not in the paper)."""
    projector_coordinates: bool = False
    """Let the language-modulated kernel see x and y as well (lite only; not in the paper)."""
    selection: bool = False
    """Answer class and selection as two maps, the selection by comparing objects and by the
    picture's own colours (`model.selection`; not in the paper)."""
    optimal_threshold: bool = False
    """Answer so that a half is each answer's own threshold (`model.optimal_threshold`; not in the
    paper). It is set after training."""

    def __post_init__(self) -> None:
        if self.image_size <= 0 or self.image_size % 32:
            raise ValueError(f"image_size must be a positive multiple of 32, not {self.image_size}")
        if not 3 <= self.word_length <= self.text_positions:
            raise ValueError(
                f"word_length must lie in 3..{self.text_positions} (text_positions), "
                f"not {self.word_length}"
            )
        if self.neck_widths[1] != self.text_width:
            raise ValueError(
                "text_width must equal neck_widths[1], the decoder's width: "
                f"{self.text_width} != {self.neck_widths[1]}"
            )
        for width, heads, name in (
            (self.text_width, self.text_heads, "text_heads"),
            (self.neck_widths[1], self.decoder_heads, "decoder_heads"),
        ):
            if width % heads:
                raise ValueError(f"{name} must divide {width}, not {heads}")
        if self.neck_widths[1] % 4:
            raise ValueError("neck_widths[1] must be a multiple of 4 for the 2-D positions")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` takes it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SegVLMConfig:
        """Build from plain JSON types.

        Raises:
            ValueError: for a key this version does not know.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(
                f"unknown model settings {unknown}; written by a newer version of segvlm?"
            )
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**plain)


_CRIS_RN101 = SegVLMConfig()
_LITE = SegVLMConfig(
    preset="segvlm-lite",
    image_size=320,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    image_encoder="efficientnet-lite0",
    text_width=128,
    text_layers=3,
    text_heads=4,
    text_embedding_width=64,
    state_width=128,
    text_dropout=0.1,
    neck_widths=(48, 128, 192),
    decoder_layers=2,
    decoder_heads=4,
    decoder_ffn=384,
    dropout=0.0,
    projector_width=48,
    kernel_width=32,
    deformable=True,
    se=True,
    residual=True,
    se_reduction=4,
    projector_skip=True,
    projector_coordinates=True,
)

PRESETS: dict[str, SegVLMConfig] = {
    "segvlm-rn101": replace(
        _CRIS_RN101, preset="segvlm-rn101", deformable=True, se=True, residual=True
    ),
    "cris-rn101": _CRIS_RN101,
    "cris-rn50": replace(
        _CRIS_RN101, preset="cris-rn50", image_encoder="clip-rn50", state_width=1024
    ),
    "segvlm-lite": _LITE,
}


def preset_config(name: str, **overrides: Any) -> SegVLMConfig:
    """The configuration called `name`, with fields replaced.

    Raises:
        ValueError: for an unknown preset or field.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return SegVLMConfig.from_dict({**PRESETS[name].to_dict(), **overrides})
