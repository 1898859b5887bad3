"""Bytes from strangers: what is an image, what is refused, and what its pixels are."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.errors import BadImage, ServiceError, TooLarge
from service.image_input import decode_photo, sniff

MAX_PIXELS = 50_000_000


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def handmade_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG from raw scanlines, each with its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(rows, 9)),
            chunk(b"IEND", b""),
        )
    )


def blank_png(width: int, height: int) -> bytes:
    """One bit a pixel, all of them black: the smallest file for the most pixels."""
    return handmade_png(width, height, 1, 0, bytes(1 + (width + 7) // 8) * height)


def encode(picture: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format_name, **options)
    return buffer.getvalue()


def textured(width: int = 97, height: int = 61) -> Image.Image:
    """Noise over a gradient, so that no two regions are equal and files are not tiny."""
    generator = np.random.default_rng(5)
    ramp = np.linspace(0, 200, width)[None, :, None] * np.ones((height, 1, 3))
    noise = generator.integers(0, 55, (height, width, 3))
    return Image.fromarray((ramp + noise).astype(np.uint8))


def decode_image(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """The whole photo as an array (H, W, 3), its told size checked."""
    photo = decode_photo(data, max_pixels)
    pixels = np.asarray(photo.picture)
    assert pixels.shape == (photo.height, photo.width, 3)
    return pixels


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at any attempt to decode pixels."""

    def refuse(image: Image.Image) -> None:
        raise AssertionError("pixels were decoded before the cap was checked")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)


# -- scaled decoding ---------------------------------------------------------------------------


def smooth(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(3).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("size", "left"),
    [
        ((640, 480), (320, 240)),  # exactly what is needed stays
        ((639, 480), (639, 480)),  # a pixel less: its half would be too small
        ((1281, 100), (321, 25)),
        ((5000, 1000), (625, 125)),
        ((700, 6000), (88, 750)),
        ((300, 200), (300, 200)),
    ],
)
def test_large_jpeg_is_decoded_as_small_as_is_safe(
    size: tuple[int, int], left: tuple[int, int]
) -> None:
    photo = decode_photo(encode(smooth(*size), "JPEG", quality=90), MAX_PIXELS, least=320)
    assert (photo.width, photo.height) == size
    assert photo.picture.size == left


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "BMP"])
def test_other_formats_are_decoded_whole(format_name: str) -> None:
    photo = decode_photo(encode(smooth(900, 600), format_name), MAX_PIXELS, least=32)
    assert photo.picture.size == (900, 600)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_scaled_photo_is_upright_and_tells_its_whole_size(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(smooth(1300, 700), "JPEG", quality=90, exif=exif)
    whole, scaled = decode_photo(data, MAX_PIXELS), decode_photo(data, MAX_PIXELS, least=100)
    assert (scaled.height, scaled.width) == (whole.height, whole.width) == whole.picture.size[::-1]
    assert max(scaled.picture.size) == 163  # an eighth
    small = [np.asarray(p.picture.resize((20, 20)), dtype=int) for p in (whole, scaled)]
    assert np.abs(small[0] - small[1]).mean() < 2


def test_cap_counts_the_whole_photo_also_when_a_part_would_be_decoded(no_decoding: None) -> None:
    data = encode(Image.new("L", (1000, 1000)), "JPEG")
    with pytest.raises(TooLarge, match="1000 x 1000"):
        decode_photo(data, 999_999, least=32)


def test_cut_short_is_refused_also_when_scaled() -> None:
    data = encode(smooth(2000, 1500), "JPEG", quality=90)
    with pytest.raises(BadImage):
        decode_photo(data[: len(data) * 2 // 3], MAX_PIXELS, least=100)


# -- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_are_read_to_the_pixel(format_name: str) -> None:
    picture = textured()
    options = {"lossless": True} if format_name == "WEBP" else {}
    pixels = decode_image(encode(picture, format_name, **options), MAX_PIXELS)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(picture))


@pytest.mark.parametrize(("format_name", "tolerance"), [("JPEG", 25), ("GIF", 60)])
def test_lossy_formats_are_read(format_name: str, tolerance: int) -> None:
    picture = textured().resize((200, 120))
    pixels = decode_image(encode(picture, format_name), MAX_PIXELS)
    assert np.abs(pixels.astype(int) - np.asarray(picture)).mean() < tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, format_name: str) -> None:
    picture = textured()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture, format_name, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    pixels = decode_image(data, MAX_PIXELS)
    np.testing.assert_array_equal(pixels, np.asarray(expected))
    assert (pixels.shape[0] > pixels.shape[1]) == (orientation >= 5)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_refuse_the_photo() -> None:
    picture = textured()
    data = encode(picture, "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f garbage")
    np.testing.assert_array_equal(decode_image(data, MAX_PIXELS), np.asarray(picture))


def test_cmyk_jpeg() -> None:
    picture = Image.new("CMYK", (32, 24), (0, 255, 255, 0))
    pixels = decode_image(encode(picture, "JPEG", quality=95), MAX_PIXELS)
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() < 12


def test_grey_16_bit_png_is_scaled_and_not_clipped() -> None:
    values = np.linspace(0, 65535, 64 * 32).astype(np.uint16).reshape(32, 64)
    pixels = decode_image(encode(Image.fromarray(values), "PNG"), MAX_PIXELS)
    np.testing.assert_array_equal(pixels, np.repeat((values >> 8)[..., None], 3, axis=2))


def test_rgb_16_bit_png() -> None:
    values = np.random.default_rng(2).integers(0, 65536, (8, 10, 3)).astype(">u2")
    rows = b"".join(b"\x00" + row.tobytes() for row in values)
    pixels = decode_image(handmade_png(10, 8, 16, 2, rows), MAX_PIXELS)
    np.testing.assert_array_equal(pixels, values >> 8)


def test_palette_with_alpha_is_put_on_white() -> None:
    picture = Image.new("P", (4, 1))
    picture.putpalette([10, 20, 30, 200, 100, 0, 7, 7, 7])
    picture.putdata([0, 1, 2, 0])
    pixels = decode_image(encode(picture, "PNG", transparency=bytes([255, 128, 0])), MAX_PIXELS)
    np.testing.assert_allclose(
        pixels[0], [(10, 20, 30), (227, 177, 127), (255, 255, 255), (10, 20, 30)], atol=1
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_put_on_white(mode: str) -> None:
    picture = Image.new(mode, (2, 2), (0, 0, 0, 0)[-len(mode) :])
    assert (decode_image(encode(picture, "PNG"), MAX_PIXELS) == 255).all()


def test_greyscale_and_bilevel() -> None:
    grey = Image.new("L", (3, 2), 77)
    assert (decode_image(encode(grey, "PNG"), MAX_PIXELS) == 77).all()
    assert (decode_image(encode(Image.new("1", (3, 2), 1), "PNG"), MAX_PIXELS) == 255).all()


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(format_name: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    options: dict[str, Any] = {"lossless": True} if format_name == "WEBP" else {}
    data = encode(
        frames[0], format_name, save_all=True, append_images=frames[1:], duration=50, **options
    )
    assert getattr(Image.open(BytesIO(data)), "n_frames", 1) == 3
    assert (decode_image(data, MAX_PIXELS) == (255, 0, 0)).all()


def test_polyglots_are_images_and_nothing_else() -> None:
    picture = textured()
    appended = encode(picture, "PNG") + b"<html><script>alert(1)</script>PK\x03\x04"
    np.testing.assert_array_equal(decode_image(appended, MAX_PIXELS), np.asarray(picture))
    with pytest.raises(BadImage, match="HTML"):
        decode_image(b"<html>" + encode(picture, "PNG"), MAX_PIXELS)


# -- what is too large -------------------------------------------------------------------------


def test_81_megapixels_in_ten_kilobytes(no_decoding: None) -> None:
    data = blank_png(9000, 9000)
    assert len(data) < 10_200
    with pytest.raises(TooLarge, match=r"9000 x 9000 = 81,000,000 pixels.*scale it down"):
        decode_image(data, MAX_PIXELS)


def test_13000_squared_is_refused_and_not_warned_about(
    no_decoding: None, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(TooLarge):
        decode_image(blank_png(13_000, 13_000), MAX_PIXELS)
    assert not recwarn.list


@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_sizes_beyond_pillows_own_limit_are_too_large_too(side: int, no_decoding: None) -> None:
    data = handmade_png(side, side, 1, 0, b"")
    with pytest.raises(TooLarge):
        decode_image(data, MAX_PIXELS)


@pytest.mark.parametrize(
    "header",
    [
        b"VP8X\x0a\x00\x00\x00\x00\x00\x00\x00" + (16382).to_bytes(3, "little") * 2,
        b"VP8L\x20\x00\x00\x00\x2f" + (16382 | 16382 << 14).to_bytes(4, "little") + bytes(20),
        b"VP8 \x20\x00\x00\x00\x00\x00\x00\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(20),
    ],
    ids=["extended", "lossless", "lossy"],
)
def test_webp_canvas_is_checked_before_it_is_opened(
    header: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("Pillow allocates the canvas when it opens a WebP")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(TooLarge, match="16383 x 16383"):
        decode_image(b"RIFF\x00\x01\x00\x00WEBP" + header, MAX_PIXELS)


@pytest.mark.parametrize("options", [{"lossless": True}, {}, {"exif": b"Exif\x00\x00"}])
def test_webp_size_is_read_right_for_every_kind(options: dict[str, Any]) -> None:
    data = encode(textured(97, 61), "WEBP", **options)
    with pytest.raises(TooLarge, match="97 x 61"):
        decode_image(data, 97 * 61 - 1)
    assert decode_image(data, 97 * 61).shape == (61, 97, 3)


def test_cap_is_inclusive() -> None:
    data = encode(textured(10, 10), "PNG")
    assert decode_image(data, 100).shape == (10, 10, 3)
    with pytest.raises(TooLarge):
        decode_image(data, 99)


# -- what is broken ----------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("kept", [0.05, 0.3, 0.6, 0.9])
def test_truncated_files_are_refused(format_name: str, kept: float) -> None:
    data = encode(textured(), format_name)
    with pytest.raises(BadImage, match="send"):
        decode_image(data[: int(len(data) * kept)], MAX_PIXELS)


def test_truncated_progressive_jpeg_is_refused() -> None:
    data = encode(textured(400, 300), "JPEG", progressive=True)
    with pytest.raises(BadImage, match="cut short"):
        decode_image(data[: len(data) * 2 // 3], MAX_PIXELS)


@pytest.mark.parametrize(
    ("data", "appearance"),
    [
        (b"", "no bytes"),
        (b"\x00", "no image format"),
        (b"hello", "no image format"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<?xml version="1.0"?><svg/>', "SVG"),
        (b"\n <!DOCTYPE html><html>", "HTML"),
        (b"%PDF-1.7", "PDF"),
        (b"II*\x00\x08\x00\x00\x00", "TIFF"),
        (b"\x00\x00\x00\x18ftypheic", "HEIC"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"data:image/png;base64,iVBORw0KGgo=", "data URL"),
        (b"BM", "no image format"),
    ],
)
def test_other_files_are_named_for_what_they_look_like(data: bytes, appearance: str) -> None:
    with pytest.raises(BadImage, match=f"{appearance}.*send"):
        sniff(data)


@pytest.mark.parametrize(
    "magic",
    [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x00\x00\x00WEBPVP8 ", b"GIF89a"],
)
def test_magic_bytes_alone_are_not_an_image(magic: bytes) -> None:
    with pytest.raises(BadImage):
        decode_image(magic, MAX_PIXELS)
    with pytest.raises(BadImage):
        decode_image(magic + bytes(64), MAX_PIXELS)


def seeds() -> list[bytes]:
    return [encode(textured(24, 16), name) for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP")]


@settings(deadline=None, max_examples=150)
@given(
    seed=st.sampled_from(seeds()),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8),
    end=st.integers(0, 4000),
)
@example(seed=seeds()[0], edits=[(0, 0xFF)], end=4000)
def test_damaged_files_give_an_image_or_one_of_our_errors(
    seed: bytes, edits: list[tuple[int, int]], end: int
) -> None:
    damaged = bytearray(seed)
    for position, value in edits:
        damaged[position % len(damaged)] = value
    outcome = attempt(bytes(damaged[:end]))
    if isinstance(outcome, ServiceError):
        assert outcome.status in (400, 413)
    else:
        assert outcome.ndim == 3
        assert outcome.size <= 3_000_000


def attempt(data: bytes) -> NDArray[np.uint8] | ServiceError:
    try:
        return decode_image(data, 1_000_000)
    except ServiceError as error:
        return error


def test_fixture_that_forbids_decoding_works(no_decoding: None) -> None:
    """Otherwise the tests that use it could not fail."""
    with pytest.raises(BadImage, match="before the cap was checked"):
        decode_image(blank_png(8, 8), MAX_PIXELS)
