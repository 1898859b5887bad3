"""An image that a JSON body names: its bytes in a data URL, or a place where it lies.

A place that is no https URL, or any if the operator lists no hosts, is refused in words.
"""

from __future__ import annotations

from service.errors import InvalidField
from service.request_parsing import ImageUrl, decode_base64
from service.settings import Settings


def read_image_reference(reference: str, field: str, settings: Settings) -> bytes | ImageUrl:
    """The file in a data URL, or what to fetch. Raises InvalidField, which names `field`."""
    if reference.lstrip()[:5].lower() == "data:":
        return decode_base64(reference, field)
    if settings.url_hosts and reference[:8].lower() == "https://":
        return ImageUrl(reference)
    raise InvalidField([(field, f"{_place(reference)}; {_REMEDY}")])


_REMEDY = "send the image itself, in base64 (a data URL: data:image/jpeg;base64,...)"


def _place(reference: str) -> str:
    if "://" in reference[:64]:
        return "is a URL, which this service does not fetch"
    return "is a path on another machine, which this service does not fetch"
