"""The service on real photos: what it answers is as good as what was measured for the bundle.

The phrases are those of the evaluation (the class phrases of the validation split, made by the same
rules), so the two numbers differ by sampling only. A fault anywhere between the upload and the
answered mask (orientation, letterbox, tokens, threshold, encoding) shows as a lower IoU.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from starlette.testclient import TestClient

from model.bundle import Bundle
from service.app import create_app
from service.backends import load_model
from service.backends.base import LoadOptions
from service.engine import Engine
from service.metrics import Metrics
from service.settings import Settings
from training.data.coco_annotations import POLICIES, ImageRow, decode_instances, read_annotations
from training.data.instances import make_phrases
from training.predictors import BundlePredictor

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.long(30),
]

SAMPLED_PHOTOS = 100
# The IoU of a phrase has a standard deviation near 0.35, and the four phrases of a photo succeed
# and fail together: the mean over 100 photos is good to about 0.023. Three times that.
SAMPLING_TOLERANCE = 0.07
# All photos: nothing is sampled. What remains is the order of batches in float32.
FULL_TOLERANCE = 0.003


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo's file and its class phrases with their masks in COCO RLE."""

    path: Path
    phrases: dict[str, dict[str, object]]


class Photos:
    """The validation photos that have class phrases, labelled when they are asked for."""

    def __init__(self, pack: Path) -> None:
        self._pack = pack
        content = read_annotations(pack / "annotations.json")
        self._categories = content.categories
        self._rows = [row for row in content.images if row.split == "val"]

    def spread(self, number: int) -> list[LabelledPhoto]:
        """About `number` photos from the whole split, which is sorted by source."""
        indices = np.linspace(0, len(self._rows) - 1, number).round().astype(int)
        labelled = [self._label(self._rows[index]) for index in indices]
        return [photo for photo in labelled if photo.phrases]

    def all(self) -> list[LabelledPhoto]:
        return self.spread(len(self._rows))

    def _label(self, row: ImageRow) -> LabelledPhoto:
        policy = POLICIES[row.source]
        instances, _ = decode_instances(row, self._categories, policy)
        path = self._pack / row.file_name
        pixels = np.asarray(Image.open(path).convert("RGB"))
        made = make_phrases(pixels, instances, policy, image_id=row.image_id)
        class_phrases = (record for record in made.phrases if record.kind == "class")
        return LabelledPhoto(path, {record.phrase: dict(record.rle) for record in class_phrases})


@pytest.fixture(scope="module")
def photos(shared_dir: Path) -> Photos:
    pack = shared_dir / "data" / "photos"
    if not (pack / "annotations.json").is_file():
        pytest.skip("the photo pack is not in ../shared, so there are no labelled photos")
    return Photos(pack)


@pytest.fixture(scope="module")
def client(served_bundle: Path) -> Iterator[TestClient]:
    settings = Settings(bundle=served_bundle)
    engine = Engine(load_model("onnx", served_bundle, LoadOptions()), settings, Metrics())
    with TestClient(create_app(settings, engine)) as client:
        yield client


def served_masks(client: TestClient, photo: LabelledPhoto) -> list[NDArray[np.bool_]]:
    """The answered mask of every phrase of a photo, from one request."""
    response = client.post(
        "/segment",
        files={"image": photo.path.read_bytes()},
        data={"expression": list(photo.phrases)},
    )
    assert response.status_code == 200, (photo.path.name, response.text)
    results = response.json()["results"]
    assert [result["expression"] for result in results] == list(photo.phrases)
    return [coco_mask.decode(result["mask"]).astype(bool) for result in results]


def served_ious(client: TestClient, photos: Sequence[LabelledPhoto]) -> NDArray[np.float64]:
    """The IoU of every phrase of every photo."""
    ious = []
    for photo in photos:
        masks = served_masks(client, photo)
        for served, truth in zip(masks, photo.phrases.values(), strict=True):
            target = coco_mask.decode(truth).astype(bool)
            assert served.shape == target.shape
            ious.append((served & target).sum() / (served | target).sum())
    return np.array(ious)


def measured_iou(bundle: Path) -> float:
    return float(Bundle.load(bundle).config.scores["kinds"]["class"]["mean_iou"])


def test_served_masks_reach_the_measured_iou(
    client: TestClient, photos: Photos, served_bundle: Path
) -> None:
    ious = served_ious(client, photos.spread(SAMPLED_PHOTOS))
    assert len(ious) > 2 * SAMPLED_PHOTOS
    assert ious.mean() == pytest.approx(measured_iou(served_bundle), abs=SAMPLING_TOLERANCE)


@pytest.mark.slow
def test_served_masks_have_exactly_the_measured_iou(
    client: TestClient, photos: Photos, served_bundle: Path
) -> None:
    ious = served_ious(client, photos.all())
    assert ious.mean() == pytest.approx(measured_iou(served_bundle), abs=FULL_TOLERANCE)


def test_service_answers_the_mask_that_the_evaluation_scores(
    client: TestClient, photos: Photos, served_bundle: Path
) -> None:
    bundle = Bundle.load(served_bundle, verify=False)
    predictor = BundlePredictor(bundle)
    for photo in photos.spread(6):
        pixels = np.asarray(Image.open(photo.path).convert("RGB"))
        maps = predictor.predict(pixels, list(photo.phrases))
        for served, scored in zip(served_masks(client, photo), maps, strict=True):
            assert (served != (scored > bundle.config.threshold)).mean() < 1e-3


def test_masks_belong_to_their_photos_and_phrases(client: TestClient, photos: Photos) -> None:
    """Against the phrases of the next photo the same masks score far lower."""
    sample = photos.spread(20)
    shifted = [
        LabelledPhoto(photo.path, wrong_truths(photo, other))
        for photo, other in zip(sample, [*sample[1:], sample[0]], strict=True)
    ]
    assert served_ious(client, sample).mean() > 2 * served_ious(client, shifted).mean()


def wrong_truths(photo: LabelledPhoto, other: LabelledPhoto) -> dict[str, dict[str, object]]:
    """The phrases of `photo`, each with a mask of `other` stretched to the photo's size."""
    truths: dict[str, dict[str, object]] = {}
    wrong = list(other.phrases.values())
    with Image.open(photo.path) as picture:
        size = picture.size
    for index, phrase in enumerate(photo.phrases):
        mask = Image.fromarray(coco_mask.decode(wrong[index % len(wrong)]) * 255).resize(size)
        truths[phrase] = coco_mask.encode(np.asfortranarray(np.asarray(mask) > 127, np.uint8))
    return truths


def test_example_of_the_document_is_found(client: TestClient) -> None:
    """What `/docs` sends as JSON: the mask is of the red circle, not of what is beside it."""
    segment = client.get("/openapi.json").json()["paths"]["/segment"]["post"]
    example = segment["requestBody"]["content"]["application/json"]["example"]
    (result,) = client.post("/segment", json=example).json()["results"]
    picture = Image.open(io.BytesIO(base64.b64decode(example["image"]))).convert("RGB")
    red = (np.asarray(picture) == (255, 0, 0)).all(axis=2)
    mask = coco_mask.decode(result["mask"]).astype(bool)
    assert (mask & red).sum() / (mask | red).sum() > 0.5
