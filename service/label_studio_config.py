"""What of a project's labelling configuration (Label Studio's XML) a prediction needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree

from service.errors import InvalidField

_LONGEST = 1_000_000  # characters
_BRUSHES = {"brush", "brushlabels"}
_EXAMPLE = (
    'add <Image name="image" value="$image"/> and '
    '<BrushLabels name="brush" toName="image"><Label value="Object"/></BrushLabels>'
)


@dataclass(frozen=True, slots=True)
class BrushLabel:
    """A label: what an annotator reads, and what a region carries."""

    value: str
    name: str


@dataclass(frozen=True, slots=True)
class BrushControl:
    """The brush that masks are drawn with, and where a task holds its image."""

    name: str
    tag: str
    """Lower case: brush or brushlabels, which is also the type of its regions."""
    image_name: str
    data_key: str
    labels: tuple[BrushLabel, ...]

    def label_for(self, expression: str) -> str:
        """The longest label that the expression names, else the first; without labels itself."""
        said = _words(expression)
        named = [label for label in self.labels if _words(label.value) in said]
        if named:
            return max(named, key=lambda label: len(label.value)).name
        return self.labels[0].name if self.labels else expression


def read_brush(config: str, field: str) -> BrushControl:
    """The first brush on an image. Raises InvalidField, which names `field`, if there is none."""
    tags = list(_parse(config, field).iter())
    images = {
        tag.get("name", ""): tag.get("value", "") for tag in tags if tag.tag.lower() == "image"
    }
    for tag in tags:
        image_name = tag.get("toName", "")
        if tag.tag.lower() not in _BRUSHES or image_name not in images or not tag.get("name"):
            continue
        value = images[image_name]
        if not re.fullmatch(r"\$\w+", value):
            message = f"the image's value {value[:64]!r} is not a field of the task, such as $image"
            raise InvalidField([(field, message)])
        return BrushControl(
            tag.get("name", ""), tag.tag.lower(), image_name, value[1:], _labels(tag)
        )
    raise InvalidField([(field, f"has no brush for an image; {_EXAMPLE}")])


def has_controls(config: str, field: str) -> bool:
    """Whether anything can be labelled; a new project's configuration is empty."""
    return any(tag.get("toName") for tag in _parse(config, field).iter())


def _parse(config: str, field: str) -> ElementTree.Element:
    """Without declarations of its own, by which a short document could grow without end."""
    if len(config) > _LONGEST:
        message = f"has {len(config)} characters, at most {_LONGEST} are accepted; shorten it"
        raise InvalidField([(field, message)])
    if "<!DOCTYPE" in config or "<!ENTITY" in config:
        raise InvalidField([(field, "declares a document type; leave the declaration out")])
    try:
        return ElementTree.fromstring(config)
    except (ElementTree.ParseError, ValueError) as error:
        message = f"not valid XML ({error}); send the project's labelling configuration"
        raise InvalidField([(field, message)]) from error


def _words(text: str) -> str:
    """Its words with a blank before and after each, so that one text may name another."""
    words = " ".join(re.findall(r"\w+", text.casefold()))
    return f" {words} "


def _labels(brush: ElementTree.Element) -> tuple[BrushLabel, ...]:
    return tuple(
        BrushLabel(value, tag.get("alias") or value)
        for tag in brush.iter()
        if tag.tag.lower() == "label" and (value := tag.get("value"))
    )
