"""BentoML, as its documents show it: a service with a batchable method behind one that decodes.

bentoml serve benchmarks.peer_servers.bentoml_service:Segment --port PORT
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bentoml

from benchmarks.peer_servers.segmenter import MAX_BATCH_SIZE, Segmenter


@bentoml.service(workers=1, traffic={"timeout": 60})
class Model:
    def __init__(self) -> None:
        self.segmenter = Segmenter()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=60_000)
    def logits(self, pairs: list[Any]) -> list[Any]:
        return self.segmenter.run(pairs)


@bentoml.service(workers=1, traffic={"timeout": 60})
class Segment:
    model = bentoml.depends(Model)

    def __init__(self) -> None:
        self.segmenter = Segmenter()

    @bentoml.api(route="/segment")
    async def segment(self, image: Path, expression: str) -> dict[str, Any]:
        question = self.segmenter.prepare(image.read_bytes(), expression)
        (logits,) = await self.model.to_async.logits([question.pair])
        return {"results": [self.segmenter.finish(question, logits)]}
