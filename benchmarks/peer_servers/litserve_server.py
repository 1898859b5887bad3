"""LitServe, as its documents show it: decode in `decode_request`, dynamic batching, one worker.

python -m benchmarks.peer_servers.litserve_server PORT
"""

# No `from __future__ import annotations`: LitServe reads the annotation of `request`.
import sys
from typing import Any

import litserve as ls
from fastapi import Request

from benchmarks.peer_servers.segmenter import MAX_BATCH_SIZE, Question, Segmenter


class SegmentApi(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.segmenter = Segmenter()

    def decode_request(self, request: Request) -> Question:
        form: Any = request  # LitServe has parsed it
        return self.segmenter.prepare(form["image"].file.read(), form["expression"])

    def batch(self, inputs: list[Question]) -> list[Question]:
        return inputs

    def predict(self, questions: list[Question]) -> list[Any]:
        logits = self.segmenter.run([question.pair for question in questions])
        return list(zip(questions, logits, strict=True))

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"results": [self.segmenter.finish(*output)]}


def main() -> None:
    api = SegmentApi(max_batch_size=MAX_BATCH_SIZE, batch_timeout=0.002, api_path="/segment")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False
    )


if __name__ == "__main__":
    main()
