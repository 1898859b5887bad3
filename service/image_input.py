"""Untrusted bytes to an RGB picture, within limits that are checked before anything is decoded.

What comes out is what a person sees: EXIF orientation applied, transparency on white, 16 bits
scaled to 8, CMYK and palettes converted, the first frame of an animation.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile

from service.errors import BadImage, TooLarge

READ_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_READABLE = "JPEG, PNG, WebP, GIF or BMP"

# What a damaged photo makes Pillow say is answered to whoever sent it, not printed.
warnings.filterwarnings("ignore", module=r"PIL\.")
# The default, relied on here: half a photo is refused and not filled up with grey.
ImageFile.LOAD_TRUNCATED_IMAGES = False

_FOREIGN = (
    (b"%PDF", "a PDF"),
    (b"II*\x00", "a TIFF"),
    (b"MM\x00*", "a TIFF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"8BPS", "a Photoshop file"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"<?xml", "an XML or SVG document"),
    (b"<svg", "an SVG drawing"),
    (b"<!doctype", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"data:", "a data URL"),
    (b"{", "a JSON document"),
)

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_EXIF_ORIENTATION = 0x0112
OVERSAMPLING = 1.0  # docs/performance.md: the IoU does not suffer, so nothing more is kept


@dataclass(frozen=True, slots=True)
class DecodedPhoto:
    """A photo as a person sees it: `picture` is RGB and upright, the sizes are of the whole photo.

    `picture` may be smaller than that, see `decode_photo`.
    """

    picture: Image.Image
    height: int
    width: int


def decode_photo(data: bytes, max_pixels: int, least: int | None = None) -> DecodedPhoto:
    """Decode an image file. Blocks for as long as decoding takes.

    `least`: the longer side that the caller will scale the photo down to. A JPEG of twice that and
    more is then decoded at a half, a quarter or an eighth of its size, which costs a fraction of
    the time; at least `OVERSAMPLING` times `least` is left.

    Raises BadImage for anything but a whole image of `READ_FORMATS`, TooLarge for more than
    `max_pixels`, which is decided from the header alone.
    """
    format_name = sniff(data)
    # Of the whole process, whose limit is one. Beyond it Pillow only warns, beyond twice of it it
    # opens nothing: a GIF's first frame of any size is filled while the file is being opened.
    Image.MAX_IMAGE_PIXELS = max_pixels
    if format_name == "WEBP":
        # Pillow allocates a WebP's canvas while opening it, before its size can be asked.
        _check_pixels(*_webp_size(data), max_pixels)
    try:
        with Image.open(BytesIO(data), formats=[format_name]) as image:
            _check_pixels(image.width, image.height, max_pixels)
            width, height = image.size
            if least is not None:
                _scale_down(image, least)
            image.load()
            if format_name != "JPEG":  # a GIF's frame can outgrow what its header says
                _check_pixels(image.width, image.height, max_pixels)
                width, height = image.size
            orientation = _orientation(image)
            upright = _to_rgb(image)
    except (TooLarge, BadImage):
        raise
    except Image.DecompressionBombError as error:
        raise _too_large("more than twice the pixels that are allowed", max_pixels) from error
    except Exception as error:  # Pillow's plugins raise whatever a broken file provokes
        raise BadImage(
            f"the {format_name} image cannot be decoded ({_reason(error)}); it is damaged or cut "
            "short, so send the whole file again or save it anew"
        ) from error
    if orientation in _TRANSPOSES:
        upright = upright.transpose(_TRANSPOSES[orientation])
    if orientation in _SIDEWAYS:
        width, height = height, width
    return DecodedPhoto(upright, height, width)


def _scale_down(image: Image.Image, least: int) -> None:
    """Let the decoder leave out what scaling down would throw away; only JPEG can."""
    longest = max(image.size)
    scale = longest / (OVERSAMPLING * least)
    if scale >= 2:
        image.draft(None, (max(1, int(image.width / scale)), max(1, int(image.height / scale))))


def sniff(data: bytes) -> str:
    """The Pillow name of the format that the first bytes announce; the file's name is no evidence.

    Raises BadImage that says what the bytes look like instead.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM") and len(data) > 26:
        return "BMP"
    if not data:
        raise BadImage(f"the image has no bytes; send the content of a {_READABLE} file")
    raise BadImage(f"the image looks like {_appearance(data)}; send a {_READABLE} file")


def _appearance(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        return "a HEIC, AVIF or video file"
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, name in _FOREIGN:
        if data.startswith(magic) or start.startswith(magic.lower()):
            return name
    return "no image format that this service knows"


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise _too_large(f"{width} x {height} = {width * height:,} pixels", max_pixels)


def _too_large(pixels: str, max_pixels: int) -> TooLarge:
    return TooLarge(
        f"the image has {pixels}, at most {max_pixels:,} are accepted; scale it down first "
        "(SEGVLM_MAX_PIXELS sets the limit)",
        max_pixels,
    )


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP's canvas, from its first chunk (RFC 9649, section 2)."""
    chunk, body = data[12:16], data[20:30]
    if chunk == b"VP8X" and len(body) == 10:
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L" and len(body) >= 5:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 " and len(body) == 10:
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    raise BadImage("the WebP image is cut short or damaged; send the whole file again")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) if there is none or the block is broken."""
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a photo with a damaged EXIF block is still a photo
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit greyscale: Pillow's own conversion clips at 255, which makes it white.
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        upright = Image.new("RGB", layer.size, "white")
        upright.paste(layer, mask=layer)
        return upright
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    """The first line of an exception's text, short enough for a client."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
