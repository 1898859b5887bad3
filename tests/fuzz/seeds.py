"""Valid inputs that the targets begin with. Small, so that many can be tried in a second."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from io import BytesIO
from typing import Any

from PIL import Image, ImageDraw

_SIZE = (40, 24)


def images() -> list[bytes]:
    """Files of every format that the service reads, in the kinds that decoders treat apart."""
    picture = Image.radial_gradient("L").resize(_SIZE).convert("RGB")
    ImageDraw.Draw(picture).rectangle((5, 5, 20, 15), fill="red")
    grey = picture.convert("L")
    clear = picture.convert("RGBA")
    clear.putalpha(grey)
    turned = Image.Exif()
    turned[0x0112] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [picture.rotate(90)] * 2}
    return [
        _file(picture, "JPEG", quality=60),
        _file(picture, "JPEG", progressive=True, exif=turned),
        _file(picture.convert("CMYK"), "JPEG"),
        _file(grey, "JPEG", restart_marker_blocks=1),
        _file(picture, "PNG"),
        _file(clear, "PNG"),
        _file(picture.convert("P"), "PNG", transparency=0),
        _file(grey.convert("I;16"), "PNG"),
        _file(grey.convert("1"), "PNG", bits=1),
        _file(picture, "PNG", **frames),
        _interlaced_png(),
        _file(picture, "WEBP", quality=40),
        _file(clear, "WEBP", lossless=True),
        _file(clear, "WEBP", exif=turned.tobytes(), **frames),
        _file(picture, "GIF"),
        _file(picture.convert("P"), "GIF", transparency=0, interlace=1, **frames),
        _file(picture, "BMP"),
        _file(picture.convert("P"), "BMP"),
        _file(grey.convert("1"), "BMP"),
    ]


def image_tokens() -> list[bytes]:
    """Pieces of those formats: markers, chunk names."""
    return [
        *(bytes((0xFF, marker)) for marker in (0xC0, 0xC2, 0xC4, 0xD0, 0xD8, 0xD9, 0xDA, 0xDB)),
        *(b"\xff\xe0\x00\x04", b"\xff\xe1\x00\x08Exif\x00\x00", b"\xff\xdd\x00\x04\x00\x01"),
        *(b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"iCCP", b"zTXt"),
        *(b"VP8 ", b"VP8L", b"VP8X", b"ANMF", b"ANIM", b"ALPH", b"EXIF", b"RIFF", b"WEBP"),
        *(b"\x21\xf9\x04", b"\x21\xff\x0bNETSCAPE2.0", b"\x2c\x00\x00\x00\x00", b"\x3b", b"BM"),
    ]


def _file(picture: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format_name, **options)
    return buffer.getvalue()


def _interlaced_png() -> bytes:
    """8 x 8 grey pixels in Adam7's seven passes; Pillow reads such files and cannot write them."""
    rows = ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4))  # pixels in a row, rows
    raw = b"".join((b"\0" + bytes(range(width))) * height for width, height in rows)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


# -- requests: a line, headers, an empty line, a body -----------------------------------------


def message(line: str, body: bytes = b"", **headers: str) -> bytes:
    """A request as text; underscores in the names of headers stand for hyphens."""
    head = [line, *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\n".join(head).encode() + b"\n\n" + body


def segment_requests() -> list[bytes]:
    """`POST /segment`: forms and JSON."""
    image = images()[4]
    form = b"".join(
        b'--edge\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % part
        for part in (
            (b"image", b'; filename="a.png"\r\nContent-Type: image/png', image),
            (b"expression", b"", b"the dog"),
            (b"expression", b"; filename*=utf-8''a%20b", "die Tür".encode()),
            (b"threshold", b"", b"0.5"),
        )
    )
    line, kind = "POST /segment?include_probability=true", "multipart/form-data; boundary=edge"
    document = {"image": _text(image), "expressions": ["the dog", "a cat"], "threshold": 0.4}
    return [
        message(line, form + b"--edge--\r\n", content_type=kind, accept="image/png;q=0.5, */*"),
        _json("POST /segment?format=polygons", document),
        _json("POST /segment", {**document, "format": "overlay"}, x_request_timeout="20"),
        _json("POST /segment", {**document, "image": "data:image/png;base64," + _text(image)}),
    ]


def infer_requests() -> list[bytes]:
    """The Open Inference Protocol V2: JSON, binary, compressed."""
    image, line = images()[0], "POST /v2/models/fake/versions/1/infer"
    inputs: list[dict[str, Any]] = [
        {"name": "image", "shape": [1], "datatype": "BYTES", "data": [_text(image)]},
        {"name": "expression", "shape": [1, 2], "datatype": "BYTES", "data": [["dog", "cat"]]},
    ]
    asked = [{"name": "rle"}, {"name": "mask", "parameters": {"binary_data": True}}]
    whole = {"id": "7", "inputs": inputs, "outputs": asked, "parameters": {"timeout": 9_000_000}}
    parts = [_element(image), _element(b"dog") + _element("Tür".encode())]
    binary = [
        {**each, "parameters": {"binary_data_size": len(part)}}
        for each, part in zip(inputs, parts, strict=True)
    ]
    for each in binary:
        del each["data"]
    head = json.dumps({"inputs": binary, "parameters": {"binary_data_output": True}}).encode()
    length = {"Inference_Header_Content_Length": str(len(head))}
    packed = gzip.compress(json.dumps(whole).encode())
    return [
        _json(line, whole),
        message(line, head + b"".join(parts), **length),
        message(line, packed, content_encoding="gzip", accept_encoding="deflate, gzip;q=0.5"),
        message(line, zlib.compress(json.dumps(whole).encode()), content_encoding="deflate"),
    ]


def foreign_requests() -> list[bytes]:
    """Hugging Face, Label Studio, Roboflow."""
    image = images()[11]
    config = (
        '<View><Image name="i" value="$image"/><BrushLabels name="b" toName="i">'
        '<Label value="Dog" alias="d"/></BrushLabels></View>'
    )
    typed = {"context": {"result": [{"value": {"text": ["the dog"]}}]}}
    tasks = [{"data": {"image": "data:image/webp;base64," + _text(image)}}] * 2
    return [
        message("POST /hf/image-segmentation?expression=the+dog&expression=cat", image),
        _json("POST /hf/image-segmentation", {"inputs": _text(image),
              "parameters": {"expression": ["dog"], "threshold": 0.1, "mask_threshold": 0.3}}),
        _json("POST /label-studio/predict", {"tasks": tasks, "label_config": config}),
        _json("POST /label-studio/predict",
              {"tasks": tasks[:1], "label_config": config, "params": typed}),
        _json("POST /label-studio/setup", {"schema": config}),
        _json("POST /label-studio/webhook", {"action": "ANNOTATION_CREATED"}),
        _json("POST /sam3/concept_segment", {
              "image": {"type": "base64", "value": _text(image)}, "format": "rle",
              "prompts": [{"type": "text", "text": "dog", "output_prob_thresh": 0.2}]}),
    ]  # fmt: skip


def readings() -> list[bytes]:
    """Requests without a body."""
    paths = ("/", "/static/page.js", "/healthz", "/metrics", "/docs", "/openapi.json", "/v2")
    paths += ("/v2/models/fake", "/v2/models/fake/versions/1/config", "/label-studio/health")
    return [message(f"GET {path}", if_none_match='W/"a", *', x_request_id="a") for path in paths]


def request_tokens() -> list[bytes]:
    """Pieces of HTTP, forms and JSON."""
    return [
        *(
            b"\n",
            b"\r\n",
            b"\n\n",
            b"--",
            b"--edge",
            b"--edge--\r\n",
            b"; ",
            b'"',
            b"=",
            b":",
            b",",
        ),
        *(b"content-type: application/json\n", b"content-encoding: gzip\n", b"transfer-encoding:"),
        *(b"x-request-timeout: 1e9\n", b"inference-header-content-length: 5\n", b"content-length:"),
        *(b"content-disposition: form-data; name=image\n", b"*=utf-8''%ff", b"boundary=", b"%00"),
        *(b"{", b"}", b"[", b"]", b"[" * 3000, b'{"a":' * 500, b"null", b"-", b"1e400", b"NaN"),
        *(b'"\\ud800"', b"\\u0000", b'"\\', b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\0"),
        *(
            "\u2028é\u0301🐶".encode(),
            b"format=overlay",
            b"&threshold=nan",
            b"image",
            b"expression",
        ),
        *(b"<!DOCTYPE a>", b"<a" * 500, b"</View>", b"&#x0;", b"data:image/png;base64,", b"=" * 9),
    ]


# -- streams ----------------------------------------------------------------------------------


def configurations() -> list[bytes]:
    """The text message with which a stream begins."""
    asked: dict[str, Any] = {"expressions": ["the dog", "🐶"], "threshold": 0.4, "format": "png"}
    return [
        json.dumps(each).encode()
        for each in (asked, {**asked, "newest": False, "include_probability": True})
    ]


def _json(line: str, document: object, **headers: str) -> bytes:
    return message(
        line, json.dumps(document).encode(), **{"content_type": "application/json", **headers}
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _element(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data
