"""A bundle: the directory that carries a model from training to the service. No torch.

`config.json` describes the model and lists every other file with its sha256. A bundle is written
whole or not at all, and read only if every byte is what the exporter wrote.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from model.preprocess import SIZE_MULTIPLE
from model.tokenizer import Tokenizer

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
GRAPH_FILES = ("image_encoder.onnx", "text_encoder.onnx", "mask_decoder.onnx")
REQUIRED_FILES = (TOKENIZER_FILE, *GRAPH_FILES)
DEFAULT_BUNDLE = Path(__file__).resolve().parent / "bundles" / "segvlm-lite"

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RETIRED = "old"
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
        for name, digest in self.files.items():
            _check_file_name(name)
            _require(
                _SHA256.fullmatch(digest) is not None,
                f"the sha256 of {name!r} must be 64 hexadecimal digits",
            )

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


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, checked."""

    path: Path
    config: BundleConfig

    @classmethod
    def load(cls, path: str | Path, verify: bool = True) -> Bundle:
        """Open the bundle at `path`.

        Every listed file must be there as a regular file and nothing unlisted beside it (names
        that begin with a dot are the file system's own business). `verify` compares every
        sha256 too; leave it on unless the same process has just checked. Raises BundleError.
        """
        root = Path(path).resolve()
        if not root.is_dir():
            raise BundleError(
                f"there is no bundle directory at {path}; give the path of an exported bundle, "
                "or export one with `python -m training export`"
            )
        config_path = root / CONFIG_FILE
        if not config_path.is_file() or config_path.is_symlink():
            raise BundleError(
                f"{path} is not a bundle: it has no regular file {CONFIG_FILE}; give the path of "
                "a directory that `python -m training export` wrote"
            )
        try:
            config = BundleConfig.from_json(config_path.read_text(encoding="utf-8"))
            _check_files(root, config.files, verify)
        except BundleError as error:
            raise BundleError(f"bundle {path}: {error}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(
                f"bundle {path} cannot be read: {error}; check its permissions or copy it again"
            ) from error
        return cls(root, config)

    def file(self, name: str) -> Path:
        """The path of a file that the bundle lists; BundleError if it lists none of that name."""
        if name not in self.config.files:
            raise BundleError(
                f"bundle {self.path} has no {name}, only {', '.join(sorted(self.config.files))}; "
                "export it with that file included, or choose a backend that needs another"
            )
        return self.path / name

    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer. Raises BundleError if its file is not one."""
        try:
            return Tokenizer.from_file(self.file(TOKENIZER_FILE))
        except ValueError as error:
            raise BundleError(f"bundle {self.path}: {error}") from error


def write_bundle(
    directory: str | Path,
    config: BundleConfig,
    files: Mapping[str, str | Path],
    overwrite: bool = False,
) -> Bundle:
    """Create the bundle `directory` from `files` (name in the bundle -> source path).

    `config.files` is replaced by the hashes of what was copied. The directory appears complete
    and verified, or not at all. An existing one is refused unless `overwrite`; then it stays
    until the new one is complete, and only another bundle or an empty directory gives way.

    Raises BundleError.
    """
    target = Path(directory).absolute()
    _check_sources(files)
    _check_target(target, overwrite)
    staging: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a rename within one file system.
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        content = staging / "new"
        content.mkdir()  # unlike mkdtemp's, with the permissions that the user's umask gives
        hashes = {name: _copy(Path(files[name]), content / name) for name in sorted(files)}
        document = replace(config, files=hashes).to_json()
        _write_durably(content / CONFIG_FILE, document.encode("utf-8"))
        Bundle.load(content)
        if target.exists():
            os.rename(target, staging / _RETIRED)
        os.rename(content, target)  # fails, rightly, if somebody made a bundle there meanwhile
    except OSError as error:
        raise BundleError(f"cannot write the bundle {directory}: {error}") from error
    finally:
        if staging is not None:
            _clear(staging, target)
    return Bundle.load(target, verify=False)


def _clear(staging: Path, target: Path) -> None:
    """Remove `staging`, but first bring an old bundle back that no new one has replaced."""
    retired = staging / _RETIRED
    if retired.exists() and not target.exists():
        os.rename(retired, target)
    shutil.rmtree(staging, ignore_errors=True)


def _check_sources(files: Mapping[str, str | Path]) -> None:
    for name, source in files.items():
        _check_file_name(name)
        if not Path(source).is_file():
            raise BundleError(
                f"cannot write {name}: there is no file {source}; export that artifact first"
            )
    _check_required(files)


def _check_target(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise BundleError(
            f"{target} exists; choose another directory, remove it, or allow overwriting"
        )
    if target.is_symlink() or not target.is_dir():
        raise BundleError(f"{target} is not a directory; choose another path")
    if not any(target.iterdir()):
        return
    try:
        Bundle.load(target, verify=False)
        _require(not any(entry.is_dir() for entry in target.iterdir()), "it has directories")
    except BundleError as error:
        # Whatever else lies there would be deleted, somebody's project perhaps.
        raise BundleError(
            f"{target} is neither empty nor a sound bundle, so it is not overwritten; choose "
            f"another directory or remove it yourself ({error})"
        ) from error


def _check_files(root: Path, hashes: Mapping[str, str], verify: bool) -> None:
    _check_required(hashes)
    listed = {CONFIG_FILE, *hashes}
    found = {entry.name for entry in root.iterdir() if not entry.name.startswith(".")}
    if found - listed:
        raise BundleError(
            f"{', '.join(sorted(found - listed))} does not belong to it; "
            "remove that, or export the bundle into a directory of its own"
        )
    for name, expected in hashes.items():
        path = root / name
        if path.is_symlink():
            raise BundleError(f"{name} is a symbolic link; copy the file itself into the bundle")
        if not path.is_file():
            raise BundleError(f"{name} is missing; copy or export the bundle again")
        if verify and _sha256(path) != expected:
            raise BundleError(
                f"{name} is damaged or was exchanged: its sha256 is not the one in "
                f"{CONFIG_FILE}; copy or export the bundle again"
            )


def _check_required(names: Mapping[str, object]) -> None:
    lacking = [name for name in REQUIRED_FILES if name not in names]
    if lacking:
        raise BundleError(f"a bundle needs {', '.join(lacking)}; export the model again")


def _check_file_name(name: str) -> None:
    """Plain names only: a path could lead out of the bundle."""
    if _FILE_NAME.fullmatch(name) is None or name == CONFIG_FILE:
        raise BundleError(
            f"{name!r} cannot name a bundle's file; use letters, digits, '.', '_' and '-', "
            f"and another name than {CONFIG_FILE}"
        )


def _copy(source: Path, destination: Path) -> str:
    shutil.copyfile(source, destination)
    with destination.open("rb") as stream:
        os.fsync(stream.fileno())
    return _sha256(destination)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
