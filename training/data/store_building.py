"""Making a phrase store from any data set, photo by photo, so that a killed run goes on.

A data set is a `PhotoSource`: it knows how many photos it has and makes each of them ready to
store. Everything that data sets share is here: the loop, the report, and reading photos.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from training.data.instances import KINDS
from training.data.lmdb_store import PhraseStoreWriter
from training.data.phrase_records import ImageRecord, ObjectRecord, PhraseRecord

_BATCH_IMAGES = 32
# The report is committed with every batch: what is listed in it must stay small.
_LISTED_OF_A_KIND, _LISTED = 100, 1000
_OTHER = "faults"


class ReadyPhoto(NamedTuple):
    """A photo as the store takes it: its record, its JPEG bytes, its phrases.

    objects: what `PhraseRecord.matched` counts in; None where the data set does not tell objects
        apart.
    """

    record: ImageRecord
    jpeg: bytes
    phrases: Sequence[PhraseRecord]
    objects: Sequence[ObjectRecord] | None = None


class PhotoSource(Protocol):
    """A data set, ready to be stored.

    fingerprint: what the content follows from (JSON); a half-made store of another is refused.
    images_root: the folder that the photos' file names start from.
    image_ids: every photo in the order of the store.
    faults: lines about the annotation files themselves.
    """

    @property
    def fingerprint(self) -> Mapping[str, Any]: ...

    @property
    def images_root(self) -> Path: ...

    @property
    def image_ids(self) -> Sequence[str]: ...

    @property
    def faults(self) -> Iterable[str]: ...

    def make(self, index: int, report: PrepareReport) -> ReadyPhoto | None:
        """Photo `index`, counted in the report; None (and a fault listed) where it is unusable.

        A pure function of the index but for the report, so that a killed run can go on.
        """
        ...


@dataclass
class PrepareReport:
    """What a store holds and what was left out.

    Attributes:
        images: counts by "split/source".
        phrases: counts by "split/kind/source".
        discriminative: counts by "split/kind" of phrases that tell siblings apart.
        too_small: counts by "split/kind" of phrases dropped for their small target.
        without_phrases: images that gave no phrase and are not stored.
        faults: one line for each faulty image or annotation, up to a limit.
        unlisted: counts of the faults beyond that limit, by kind.
        tallies: counts of whatever a data set wants counted, by its name.
        notes: lines about the whole, as a comparison with a data set's published counts.
    """

    images: dict[str, int] = field(default_factory=dict)
    phrases: dict[str, int] = field(default_factory=dict)
    discriminative: dict[str, int] = field(default_factory=dict)
    too_small: dict[str, int] = field(default_factory=dict)
    without_phrases: int = 0
    faults: list[str] = field(default_factory=list)
    unlisted: dict[str, int] = field(default_factory=dict)
    tallies: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def total(self, split: str) -> int:
        """Number of phrases of a split."""
        return sum(n for key, n in self.phrases.items() if key.split("/")[0] == split)

    def count(
        self,
        split: str,
        source: str,
        phrases: Sequence[PhraseRecord],
        too_small: Mapping[str, int] | None = None,
    ) -> None:
        """Add the phrases of one image, and by kind how many were dropped for a small target."""
        for kind, number in (too_small or {}).items():
            _add(self.too_small, f"{split}/{kind}", number)
        if not phrases:
            self.without_phrases += 1
            return
        _add(self.images, f"{split}/{source}")
        for phrase in phrases:
            _add(self.phrases, f"{split}/{phrase.kind}/{source}")
            if phrase.discriminative:
                _add(self.discriminative, f"{split}/{phrase.kind}")

    def tally(self, name: str, by: int = 1) -> None:
        """Count something by its name."""
        _add(self.tallies, name, by)

    def list_fault(self, kind: str, line: str) -> None:
        """List a fault; of each kind the first hundred, the rest are counted."""
        listed = f"listed {kind}"
        if self.tallies.get(listed, 0) < _LISTED_OF_A_KIND:
            self.faults.append(line)
            self.tally(listed)
        else:
            _add(self.unlisted, kind)

    def bound_faults(self) -> None:
        """Keep the first thousand lines of all faults, count the rest."""
        if len(self.faults) > _LISTED:
            _add(self.unlisted, _OTHER, len(self.faults) - _LISTED)
            del self.faults[_LISTED:]

    def text(self) -> str:
        """The report as a table for a terminal."""
        splits = sorted({key.split("/")[0] for key in self.images})
        sources = sorted({key.split("/", 1)[1] for key in self.images})
        seen = {key.split("/")[1] for key in (*self.phrases, *self.too_small)}
        kinds = [kind for kind in KINDS if kind in seen] + sorted(seen - set(KINDS))
        lines = []
        for split in splits:
            n_images = sum(self.images.get(f"{split}/{source}", 0) for source in sources)
            lines.append(f"{split}: {n_images} images, {self.total(split)} phrases")
            header = "".join(f"{source or '(no source)':>30}" for source in sources)
            lines.append(f"  {'kind':<10}{header}{'all':>8}{'telling':>9}{'too small':>11}")
            for kind in kinds:
                counts = [self.phrases.get(f"{split}/{kind}/{source}", 0) for source in sources]
                lines.append(
                    f"  {kind:<10}"
                    + "".join(f"{count:>30}" for count in counts)
                    + f"{sum(counts):>8}{self.discriminative.get(f'{split}/{kind}', 0):>9}"
                    + f"{self.too_small.get(f'{split}/{kind}', 0):>11}"
                )
        lines.append(f"images without any phrase: {self.without_phrases}")
        lines.append(f"faults: {len(self.faults) + sum(self.unlisted.values())}")
        lines += [f"  {fault}" for fault in self.faults]
        lines += [f"  and {n} more: {kind}" for kind, n in self.unlisted.items()]
        lines += self.notes
        return "\n".join(lines)


def build_store(
    source: PhotoSource,
    out: Path,
    *,
    further_splits: Mapping[str, Collection[str]] = MappingProxyType({}),
    show_progress: bool = True,
) -> PrepareReport:
    """Store every photo of a data set.

    Run again after a kill it continues; run on a finished store it returns that store's report.

    Args:
        out: the LMDB file to write.
        further_splits: image ids by split, for images in more splits than their record's own.

    Raises:
        ValueError: no photo gave a phrase, or `out` holds something else. Faulty photos and
            annotations are left out and listed in the report.
    """
    with PhraseStoreWriter(out, source.fingerprint) as writer:
        state = writer.progress or {"next": 0, "report": _first_report(source.faults)}
        report, begin = PrepareReport(**state["report"]), state["next"]
        if writer.finished:
            return report
        total = len(source.image_ids)
        with tqdm(total=total, initial=begin, unit="image", disable=not show_progress) as bar:
            for start in range(begin, total, _BATCH_IMAGES):
                indices = range(start, min(start + _BATCH_IMAGES, total))
                made = [source.make(index, report) for index in indices]
                report.bound_faults()
                state = {"next": indices.stop, "report": asdict(report)}
                ready = [item for item in made if item is not None]
                objects = {
                    item.record.image_id: item.objects for item in ready if item.objects is not None
                }
                writer.add([item[:3] for item in ready], state, objects)
                bar.update(len(indices))
        if not report.images:
            raise ValueError(
                f"no image gave a phrase; is {source.images_root} the folder that the file names "
                f"start from?\n{report.text()}"
            )
        writer.finish(source.image_ids, state, further_splits)
    return report


def _first_report(faults: Iterable[str]) -> dict[str, Any]:
    report = PrepareReport()
    for fault in faults:
        report.list_fault("faults of the annotation files", fault)
    return asdict(report)


def _add(counts: dict[str, int], key: str, by: int = 1) -> None:
    counts[key] = counts.get(key, 0) + by


def file_digest(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits, for fingerprints; read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_photo(path: Path, height: int, width: int) -> tuple[bytes, npt.NDArray[np.uint8]]:
    """The file's bytes (other formats re-encoded as JPEG) and its pixels (H, W, 3) uint8.

    EXIF orientation is not applied: COCO masks are drawn on the stored pixels.

    Raises:
        ValueError: no file, no image, or another size than annotated.
    """
    content, form, image = _open_photo(path)
    if image.size != (width, height):
        raise ValueError(_size_fault(path, image, height, width))
    pixels = np.asarray(image.convert("RGB"))
    return content if form == "JPEG" else _encode_jpeg(image), pixels


class FittedPhoto(NamedTuple):
    """A photo at its annotated size, as JPEG.

    greyscale: the file has one channel; readers of the store get it as RGB all the same.
    resized_from: (height, width) of the file where it was another size, else None.
    """

    jpeg: bytes
    greyscale: bool
    resized_from: tuple[int, int] | None


def fit_photo(path: Path, height: int, width: int, tolerance: float = 0.02) -> FittedPhoto:
    """Like `read_photo`, but a photo of the annotated shape in another size is resized.

    Args:
        tolerance: by how much the ratio of width to height may differ, as a share of it.

    Raises:
        ValueError: no file, no image, or another shape than annotated.
    """
    content, form, image = _open_photo(path)
    grey = image.mode in ("L", "1", "LA", "I;16")
    if image.size == (width, height):
        return FittedPhoto(content if form == "JPEG" else _encode_jpeg(image), grey, None)
    ratio = (image.width / image.height) / (width / height)
    if abs(ratio - 1) > tolerance:
        raise ValueError(_size_fault(path, image, height, width))
    resized = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    return FittedPhoto(_encode_jpeg(resized), grey, (image.height, image.width))


def _open_photo(path: Path) -> tuple[bytes, str | None, Image.Image]:
    """The file's bytes, its format and the decoded image."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            form = image.format
            image.load()
            return content, form, image
    except FileNotFoundError:
        raise ValueError(f"no file {path.name}") from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from error


def _size_fault(path: Path, image: Image.Image, height: int, width: int) -> str:
    return f"{path.name} is {image.width} x {image.height}, annotated {width} x {height}"


def _encode_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
