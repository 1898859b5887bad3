"""What a bundle's `config.json` holds, read strictly: every field, no other, each of its type."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NoReturn

from model.calibration import ScoreMap
from model.preprocess import SIZE_MULTIPLE

FORMAT_VERSION = 2
CONFIG_FILE = "config.json"
VARIANTS = ("fp16", "int8")
"""Precisions that a bundle's ONNX graphs may have beside float32."""

_COSTS = ("mean_iou_fp32", "mean_iou", "iou_loss", "mask_iou", "phrases")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BundleError(ValueError):
    """A bundle that cannot be read or written; the message names the remedy."""


@dataclass(frozen=True)
class BundleConfig:
    """What `config.json` holds. Raises BundleError for values that no model can have."""

    name: str
    version: str
    preset: str
    image_size: int
    """Side of the square input in pixels."""
    word_length: int
    """Tokens of an expression, start and end included."""
    threshold: float
    """Probability from which a pixel belongs to the mask."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Normalisation of RGB values in 0..1. For the reader: the image encoder applies it itself."""
    training: dict[str, Any]
    """How the model was trained and on what."""
    scores: dict[str, Any]
    """What evaluation measured."""
    parity: dict[str, Any]
    """Largest differences between the exported graphs and the network they were made from."""
    precisions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each of `VARIANTS` in the bundle costs: `mean_iou_fp32` and `mean_iou`, of the float32
    graphs and of the variant; `iou_loss`, the first less the second (0.005 is half a point);
    `mask_iou`, how far their masks agree; on how many `phrases` of which `data` (fingerprint)."""
    files: dict[str, str] = field(default_factory=dict)
    """sha256 (hexadecimal) of every other file of the bundle, by name."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ("name", "version", "preset"):
            _require(getattr(self, name).strip() != "", f"{name} must not be empty")
        _require(
            self.image_size >= SIZE_MULTIPLE and self.image_size % SIZE_MULTIPLE == 0,
            f"image_size must be a positive multiple of {SIZE_MULTIPLE}, not {self.image_size}",
        )
        _require(self.word_length >= 2, f"word_length must be at least 2, not {self.word_length}")
        _require(0 < self.threshold < 1, f"threshold must be within 0..1, not {self.threshold}")
        _require(min(self.std) > 0, f"std must be positive, not {self.std}")
        _ = self.score_map  # raises for one that is none
        for name, cost in self.precisions.items():
            _check_cost(name, cost)
        for name, digest in self.files.items():
            check_file_name(name)
            _require(
                _SHA256.fullmatch(digest) is not None,
                f"the sha256 of {name!r} must be 64 hexadecimal digits",
            )

    @property
    def score_map(self) -> ScoreMap | None:
        """What `evaluate` fitted for the scores of answers; None where it did not."""
        fitted = self.scores.get("calibration")
        if fitted is None:
            return None
        try:
            return ScoreMap.of(fitted["knots"])
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{CONFIG_FILE} is not right: scores.calibration.knots is no score map ({error}); "
                "export the bundle again with the JSON of `evaluate`"
            ) from error

    @classmethod
    def from_json(cls, document: str) -> BundleConfig:
        """Parse `config.json`. Raises BundleError for anything but exactly these fields."""
        try:
            values = json.loads(
                document,
                object_pairs_hook=_unique_keys,
                parse_float=_finite,
                parse_constant=_refuse_constant,
            )
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"{CONFIG_FILE} is not valid JSON ({error}); copy or export the bundle again"
            ) from error
        _require(isinstance(values, dict), "it must hold a JSON object")
        # First of all, because a newer format may have other fields.
        version = values.get("format_version")
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise BundleError(
                f"{CONFIG_FILE} has format version {version!r}, this release reads "
                f"{FORMAT_VERSION}; install the segvlm release that wrote the bundle, "
                "or export it again with this one"
            )
        expected = {entry.name for entry in fields(cls)}
        missing, unknown = sorted(expected - values.keys()), sorted(values.keys() - expected)
        _require(not missing, f"it lacks {', '.join(missing)}")
        _require(not unknown, f"it has unknown fields: {', '.join(unknown)}")
        return cls(**{name: _typed(name, value) for name, value in values.items()})

    def to_json(self) -> str:
        """The text of `config.json`. Raises BundleError for a value that JSON cannot hold."""
        try:
            return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"the bundle's description is not JSON ({error}); "
                "put only finite numbers, texts, lists and dictionaries into it"
            ) from error


def check_file_name(name: str) -> None:
    """Plain names only: a path could lead out of the bundle."""
    if _FILE_NAME.fullmatch(name) is None or name == CONFIG_FILE:
        raise BundleError(
            f"{name!r} cannot name a bundle's file; use letters, digits, '.', '_' and '-', "
            f"and another name than {CONFIG_FILE}"
        )


def _check_cost(name: str, cost: object) -> None:
    _require(name in VARIANTS, f"precisions must be of {', '.join(VARIANTS)}, not {name!r}")
    _require(isinstance(cost, dict), f"precisions.{name} must be an object, not {cost!r}")
    assert isinstance(cost, dict)
    wrong = [key for key in _COSTS if not _is_number(cost.get(key))]
    _require(not wrong, f"precisions.{name} must give {', '.join(wrong)} as a number")
    _require("data" in cost, f"precisions.{name} lacks data")


def _typed(name: str, value: Any) -> Any:
    """`value` as the type of BundleConfig's field `name`, or BundleError."""
    if name in ("name", "version", "preset"):
        _require(isinstance(value, str), f"{name} must be a text, not {value!r}")
    elif name in ("image_size", "word_length", "format_version"):
        _require(type(value) is int, f"{name} must be a whole number, not {value!r}")
    elif name == "threshold":
        _require(_is_number(value), f"{name} must be a number, not {value!r}")
        return float(value)
    elif name in ("mean", "std"):
        numbers = isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))
        _require(numbers, f"{name} must be a list of three numbers, not {value!r}")
        return tuple(map(float, value))
    elif name == "files":
        texts = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        _require(texts, f"{name} must map names to texts")
    else:
        _require(isinstance(value, dict), f"{name} must be an object, not {value!r}")
    return value


def _is_number(value: object) -> bool:
    # The bound is far beyond any field's meaning and keeps float() from overflowing.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise BundleError(f"{CONFIG_FILE} is not right: {problem}; export the bundle again")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("an object names a key twice")
    return values


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number} is too large")
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
