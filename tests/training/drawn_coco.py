"""A set in COCO's format of photos that a test draws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image


class DrawnSet:
    """Photos with rectangular annotations, in a folder; `names` are those of the categories."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._categories = [{"id": place, "name": name} for place, name in enumerate(names, 1)]
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, photo: Image.Image, split: str, **entries: Any) -> None:
        """Save the photo as the next number's; `entries` are further ones of its image."""
        number = len(self._images)
        name, (width, height) = f"{number}.jpg", photo.size
        photo.save(self._folder / name, quality=95)
        image = {"id": number, "file_name": name, "width": width, "height": height, "split": split}
        self._images.append({**image, **entries})

    def annotate(self, category: int, left: int, top: int, right: int, bottom: int) -> None:
        """A thing of the category, which counts from 1, in the photo that is added next."""
        self._annotations.append(
            {
                "id": len(self._annotations) + 1,
                "image_id": len(self._images),
                "category_id": category,
                "iscrowd": 0,
                "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
            }
        )

    def write(self) -> Path:
        """The annotation file, beside the photos."""
        content = {
            "images": self._images,
            "annotations": self._annotations,
            "categories": self._categories,
        }
        path = self._folder / "annotations.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path
