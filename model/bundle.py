"""A bundle: the directory that carries a model from training to the service. No torch.

`config.json` describes the model and lists every other file with its sha256. A bundle is written
whole or not at all, and read only if every byte is what the exporter wrote.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from model.bundle_config import CONFIG_FILE as CONFIG_FILE
from model.bundle_config import FORMAT_VERSION as FORMAT_VERSION
from model.bundle_config import VARIANTS as VARIANTS
from model.bundle_config import BundleConfig as BundleConfig
from model.bundle_config import BundleError as BundleError
from model.bundle_config import check_file_name
from model.probe import Probe
from model.tokenizer import Tokenizer

STAGES = ("image_encoder", "text_encoder", "mask_decoder")
"""The network in three parts; each is a file of every kind of graph."""
TOKENIZER_FILE = "tokenizer.json"
PROBE_FILE = "probe.npz"
WEIGHTS_FILE = "model.safetensors"
GRAPH_FILES = tuple(f"{stage}.onnx" for stage in STAGES)
TORCHSCRIPT_FILES = tuple(f"{stage}.torchscript" for stage in STAGES)
REQUIRED_FILES = (TOKENIZER_FILE, PROBE_FILE, *GRAPH_FILES)
DEFAULT_BUNDLE = Path(__file__).resolve().parent / "bundles" / "segvlm-lite"

_RETIRED = "old"


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
        sha256 too and looks into the probe; leave it on unless the same process has just checked.
        Raises BundleError.
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
            _check_variants(config)
        except BundleError as error:
            raise BundleError(f"bundle {path}: {error}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(
                f"bundle {path} cannot be read: {error}; check its permissions or copy it again"
            ) from error
        bundle = cls(root, config)
        if verify:
            bundle.probe()
        return bundle

    def has(self, *names: str) -> bool:
        """Whether the bundle lists files of all these names."""
        return all(name in self.config.files for name in names)

    def file(self, name: str) -> Path:
        """The path of a file that the bundle lists; BundleError if it lists none of that name."""
        if name not in self.config.files:
            raise BundleError(
                f"bundle {self.path} has no {name}, only {', '.join(sorted(self.config.files))}; "
                "export it with that file included, or choose a backend that needs another"
            )
        return self.path / name

    def graphs(self, precision: str = "fp32") -> tuple[Path, Path, Path]:
        """The ONNX files of `STAGES`, in float32 or one of `VARIANTS`.

        A stage that gains nothing from int8 has no file of that kind; its float32 graph, which has
        the same inputs and outputs, stands in. Raises BundleError for a precision it lacks.
        """
        if precision not in ("fp32", *self.config.precisions):
            found = ", ".join(("fp32", *sorted(self.config.precisions)))
            raise BundleError(
                f"bundle {self.path} has no {precision} graphs, only {found}; choose one of these, "
                f"or export it again with --{precision}"
            )
        image, text, mask = (
            self.file(named if self.has(named := f"{stage}.{precision}.onnx") else plain)
            for stage, plain in zip(STAGES, GRAPH_FILES, strict=True)
        )
        return image, text, mask

    @property
    def cpu_precision(self) -> Literal["fp32", "int8"]:
        """What a CPU computes in unless it is told: int8, which is faster, if the bundle has it."""
        return "int8" if "int8" in self.config.precisions else "fp32"

    def probe(self) -> Probe:
        """The bundle's question and answer. Raises BundleError if they are not of this model."""
        try:
            probe = Probe.load(self.file(PROBE_FILE))
            probe.check(self.config.image_size, self.config.word_length)
        except ValueError as error:
            raise BundleError(
                f"bundle {self.path}: {PROBE_FILE} is of no use: {error}; export the bundle again"
            ) from error
        return probe

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
        check_file_name(name)
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
        if any(entry.is_dir() for entry in target.iterdir()):
            raise BundleError("it has directories")
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


def _check_variants(config: BundleConfig) -> None:
    """Graphs come in whole sets, and a variant never without the measurement of what it costs."""
    suffixes = ("torchscript", *(f"{variant}.onnx" for variant in VARIANTS))
    for suffix in suffixes:
        variant = suffix.removesuffix(".onnx")
        lacking = [name for stage in STAGES if (name := f"{stage}.{suffix}") not in config.files]
        some = len(lacking) < len(STAGES)
        if some and lacking and variant != "int8":
            raise BundleError(f"it lacks {', '.join(lacking)}; export the bundle again")
        if variant in VARIANTS and some != (variant in config.precisions):
            raise BundleError(
                f"its {variant} graphs and precisions.{variant} of {CONFIG_FILE} come together or "
                "not at all; export the bundle again"
            )


def _check_required(names: Mapping[str, object]) -> None:
    lacking = [name for name in REQUIRED_FILES if name not in names]
    if lacking:
        raise BundleError(f"a bundle needs {', '.join(lacking)}; export the model again")


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
