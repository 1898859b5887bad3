"""tritonclient[http] as its users use it: every way to send and get tensors, sync and async.

    triton.py HOST:PORT MODEL VERSION PHOTO EXPRESSION...

Prints JSON: what each way got, the masks as the SHA-256 of their bytes.
"""

import asyncio
import base64
import hashlib
import itertools
import json
import sys

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

url, model, version, photo, *expressions = sys.argv[1:]
with open(photo, "rb") as file:
    image = file.read()


def inputs(binary, shape=None):
    shape = shape or [len(expressions)]
    sent_image = image if binary else base64.b64encode(image)
    made = [
        triton.InferInput("image", [1], "BYTES"),
        triton.InferInput("expression", shape, "BYTES"),
    ]
    made[0].set_data_from_numpy(np.array([sent_image], dtype=object), binary_data=binary)
    texts = np.array([text.encode() for text in expressions], dtype=object).reshape(shape)
    made[1].set_data_from_numpy(texts, binary_data=binary)
    return made


def outputs(binary):
    return [
        triton.InferRequestedOutput(name, binary_data=binary) for name in ("score", "mask", "rle")
    ]


def summary(result):
    masks, rles = result.as_numpy("mask"), result.as_numpy("rle")
    texts = [each.decode() if isinstance(each, bytes) else each for each in rles]
    answer = result.get_response()
    return {
        "dtypes": [str(masks.dtype), str(result.as_numpy("score").dtype)],
        "shape": list(masks.shape),
        "masks": [hashlib.sha256(mask.tobytes()).hexdigest() for mask in masks],
        "scores": result.as_numpy("score").tolist(),
        "rles": [json.loads(text) for text in texts],
        "order": [output["name"] for output in answer["outputs"]],
        "id": answer.get("id"),
        "model": [answer["model_name"], answer["model_version"]],
    }


def refused(call):
    try:
        call()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return None


def ask_sync():
    client = triton.InferenceServerClient(url)
    answers = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(model, version),
        "no such model ready": client.is_model_ready("no-such-model"),
        "server": client.get_server_metadata(),
        "metadata": client.get_model_metadata(model, version),
        "config": client.get_model_config(model),
        "ways": {},
    }
    codings = (None, "gzip", "deflate")
    for sent, got in itertools.product((True, False), repeat=2):
        for request_coding, response_coding in (
            (None, None),
            *itertools.product(codings[1:], repeat=2),
        ):
            result = client.infer(
                model,
                inputs(sent),
                model_version=version,
                outputs=outputs(got),
                request_id="number 7",
                request_compression_algorithm=request_coding,
                response_compression_algorithm=response_coding,
            )
            name = f"binary {sent} {got}, {request_coding} {response_coding}"
            answers["ways"][name] = summary(result)
    answers["ways"]["nothing said"] = summary(
        client.infer(model, inputs(True), request_id="number 7")
    )
    batched = client.infer(model, inputs(True, [1, len(expressions)]), request_id="number 7")
    answers["ways"]["a batch dimension"] = summary(batched)
    pending = client.async_infer(model, inputs(True), request_id="number 7")
    answers["ways"]["async_infer"] = summary(pending.get_result())
    score = client.infer(model, inputs(True), outputs=[triton.InferRequestedOutput("score")])
    answers["only the score"] = [output["name"] for output in score.get_response()["outputs"]]
    strict = client.infer(model, inputs(True), parameters={"threshold": 1.0})
    answers["pixels above 1"] = int(strict.as_numpy("mask").sum())
    answers["errors"] = {
        "model": refused(lambda: client.infer("no-such-model", inputs(True))),
        "version": refused(lambda: client.get_model_metadata(model, "77")),
        "output": refused(
            lambda: client.infer(
                model, inputs(True), outputs=[triton.InferRequestedOutput("depth")]
            )
        ),
        "input": refused(lambda: client.infer(model, inputs(True)[:1])),
        "timeout": refused(lambda: client.infer(model, inputs(True), timeout=1)),
        "statistics": refused(lambda: client.get_inference_statistics(model)),
    }
    client.close()
    return answers


async def ask_async():
    ways = {}
    async with triton_aio.InferenceServerClient(url) as client:
        assert await client.is_model_ready(model)
        for binary, coding in itertools.product((True, False), (None, "gzip", "deflate")):
            result = await client.infer(
                model,
                inputs(binary),
                outputs=outputs(binary),
                request_id="number 7",
                request_compression_algorithm=coding,
                response_compression_algorithm=coding,
            )
            ways[f"aio: binary {binary}, {coding}"] = summary(result)
    return ways


found = ask_sync()
found["ways"].update(asyncio.run(ask_async()))
print(json.dumps(found))
