"""kserve's InferenceRESTClient as its users use it.

    kserve_rest.py URL MODEL PHOTO EXPRESSION...

Prints JSON: what each way got, the masks as the SHA-256 of their bytes.
"""

import asyncio
import base64
import hashlib
import json
import sys

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

url, model, photo, *expressions = sys.argv[1:]
with open(photo, "rb") as file:
    image = file.read()


def request(binary, **options):
    sent_image = image if binary else base64.b64encode(image)
    inputs = [
        InferInput("image", [1], "BYTES"),
        InferInput("expression", [len(expressions)], "BYTES"),
    ]
    inputs[0].set_data_from_numpy(np.array([sent_image], dtype=object), binary_data=binary)
    texts = np.array([text.encode() for text in expressions], dtype=object)
    inputs[1].set_data_from_numpy(texts, binary_data=binary)
    return InferRequest(model, inputs, request_id="number 7", **options)


def summary(answer):
    outputs = {output.name: output for output in answer.outputs}
    masks = outputs["mask"].as_numpy().astype(np.uint8)
    return {
        "shape": list(masks.shape),
        "masks": [hashlib.sha256(mask.tobytes()).hexdigest() for mask in masks],
        "scores": outputs["score"].as_numpy().tolist(),
        "rles": [json.loads(text) for text in outputs["rle"].data],
        "id": answer.id,
        "model": answer.model_name,
    }


async def main():
    wanted = [RequestedOutput(name, {"binary_data": True}) for name in ("mask", "score", "rle")]
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        ways = {
            "binary": await client.infer(url, request(True), model),
            "JSON": await client.infer(url, request(False), model),
            "binary answer": await client.infer(url, request(True, request_outputs=wanted), model),
        }
        error = None
        try:
            await client.infer(url, request(True), "no-such-model")
        except httpx.HTTPStatusError as refused:
            error = str(refused)
        return {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model ready": await client.is_model_ready(url, model),
            "no such model ready": await client.is_model_ready(url, "no-such-model"),
            "ways": {name: summary(answer) for name, answer in ways.items()},
            "error": error,
        }


print(json.dumps(asyncio.run(main())))
