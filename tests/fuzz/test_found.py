"""What fuzzing found, once mended: each would answer a 500 or take far more than it may."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from service.errors import MalformedBody, TooLarge
from service.image_input import decode_photo
from service.request_parsing import RawRequest, parse_task
from tests.fuzz.bounds import PeakMemory
from tests.fuzz.targets import SETTINGS


def gif(width: int, height: int, disposal: int) -> bytes:
    """A screen of 10 x 10 pixels and a first frame of any size, which is replaced by another."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    control = b"\x21\xf9\x04" + bytes((disposal << 2 | 1, 0, 0, 1, 0))
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00"
    return screen + control + frame + b";"


@pytest.mark.parametrize("disposal", [2, 3])
@pytest.mark.parametrize("side", [1100, 20_000], ids=["above the limit", "far above it"])
def test_a_gif_is_not_filled_while_it_is_opened(side: int, disposal: int) -> None:
    """65535 x 65535 pixels in 50 bytes: four gigabytes."""
    memory = PeakMemory()
    with pytest.raises(TooLarge, match="SEGVLM_MAX_PIXELS") as caught:
        decode_photo(gif(side, side, disposal), 1_000_000)
    assert caught.value.members == {"limit": 1_000_000}
    assert memory.rise < 50 * 2**20


def test_a_boundary_of_any_length() -> None:
    raw = RawRequest(b"", f"multipart/form-data; boundary={'x' * 300}", "", ())
    with pytest.raises(MalformedBody, match="256"):
        parse_task(raw, SETTINGS)


def test_a_damaged_exif_block_is_not_reported_on_standard_error(repo_root: Path) -> None:
    """In a process of its own: pytest has filters of warnings itself."""
    program = (
        "from service.image_input import decode_photo\nfrom tests.fuzz.seeds import images\n"
        "data = next(data for data in images() if b'Exif' in data)\n"
        "start = data.index(b'Exif') + 14\n"
        "decode_photo(data[:start] + b'\\xff\\xff' + data[start + 2:], 1_000_000)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repo_root, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
