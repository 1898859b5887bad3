"""The Open Inference Protocol V2 over the pipeline: tensors in, masks, scores and RLE out."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from service import mask_formats
from service.errors import TooLarge
from service.inference_v2 import tensors
from service.inference_v2.compression import choose_coding, compress, is_worth_it
from service.inference_v2.infer_parsing import Infer, RawInfer, parse_infer
from service.inference_v2.model_description import MASK, RLE, SCORE
from service.request_parsing import SegmentTask
from service.settings import Settings
from service.translation import Findings, Payload

_JSON, _BINARY = "application/json", "application/octet-stream"


class InferTranslation:
    """Of one request; `accept_encoding` is its header, `reserve` is told of what it inflates to."""

    def __init__(
        self,
        raw: RawInfer,
        accept_encoding: str,
        settings: Settings,
        reserve: Callable[[int], None],
    ) -> None:
        self._raw, self._settings, self._reserve = raw, settings, reserve
        self._coding = choose_coding(accept_encoding)
        self._infer: Infer

    def read(self) -> SegmentTask:
        self._infer = parse_infer(self._raw, self._settings, self._reserve)
        return self._infer.task

    def write(self, found: Findings) -> Payload:
        members: dict[str, object] = {
            "model_name": found.spec.name,
            "model_version": found.spec.version,
        }
        if self._infer.id is not None:
            members["id"] = self._infer.id
        pieces, length = tensors.join_answer(members, self._tensors(found))
        headers = {"Vary": "Accept-Encoding"}
        if length is not None:
            headers[tensors.HEADER_LENGTH] = str(length)
        if self._coding and is_worth_it(sum(map(len, pieces))):
            headers["Content-Encoding"] = self._coding
            body = compress(pieces, self._coding)
        else:
            body = b"".join(pieces)
        return Payload(body, _JSON if length is None else _BINARY, headers)

    def _tensors(self, found: Findings) -> list[tensors.Tensor]:
        """Only what is wanted is made, of one mask at a time."""
        wanted = {output.name: output.binary for output in self._infer.outputs}
        height, width = found.geometry.height, found.geometry.width
        count = len(found.task.expressions)
        masks = self._empty_masks(count, height, width) if MASK in wanted else None
        scores, rles = [], []
        for index, each in enumerate(found.masks):
            if masks is not None:
                placed, (rows, columns) = each.mask, each.mask.window.shape
                bottom, right = placed.top + rows, placed.left + columns
                masks[index, placed.top : bottom, placed.left : right] = placed.window
            scores.append(round(each.score, 6))
            if RLE in wanted:
                rles.append(json.dumps(mask_formats.encode_rle(each.mask)))
        made = []
        for name, binary in wanted.items():
            if masks is not None and name == MASK:
                made.append(tensors.mask_tensor(name, masks, binary))
            elif name == SCORE:
                made.append(tensors.score_tensor(name, scores, binary))
            else:
                made.append(tensors.text_tensor(name, rles, binary))
        return made

    def _empty_masks(self, count: int, height: int, width: int) -> np.typing.NDArray[np.uint8]:
        """Raises TooLarge if all the masks have more pixels than one image may have."""
        most = self._settings.max_pixels
        if count * height * width > most:
            raise TooLarge(
                f"the output {MASK!r} would have {count} x {height} x {width} elements, at most "
                f"{most:,} are made; ask for {RLE!r} instead, or send fewer expressions "
                "(SEGVLM_MAX_PIXELS sets the limit)",
                most,
            )
        return np.zeros((count, height, width), dtype=np.uint8)
