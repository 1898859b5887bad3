"""An image that a JSON body names: its bytes in a data URL, or a place where it lies.

What only names a place is refused in words: this service fetches nothing.
"""

from __future__ import annotations

from service.errors import InvalidField
from service.request_parsing import decode_base64


def read_image_reference(reference: str, field: str) -> bytes:
    """The file in a data URL. Raises InvalidField, which names `field`, for anything else."""
    if reference.lstrip()[:5].lower() == "data:":
        return decode_base64(reference, field)
    raise InvalidField([(field, f"{_place(reference)}; {_REMEDY}")])


def refuse_image_url(field: str) -> InvalidField:
    """The error for an image that is given by its URL."""
    return InvalidField([(field, f"is a URL, which this service does not fetch; {_REMEDY}")])


_REMEDY = "send the image itself, in base64 (a data URL: data:image/jpeg;base64,...)"


def _place(reference: str) -> str:
    if "://" in reference[:64]:
        return "is a URL, which this service does not fetch"
    return "is a path on another machine, which this service does not fetch"
