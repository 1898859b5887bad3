"""Any COCO-format instance set becomes phrases with masks.

The mask of a phrase is the union of all instances that it matches, as in PhraseCut. Kinds:

    class     "the dogs"                   every instance of the class
    colour    "the red car"                every instance whose pixels clearly have it
    size      "the largest dog"            one, clearly larger or smaller than the next
    position  "the cup on the left"        one, clearly further out than the next
    ordinal   "second chair from the left" one of at least three in a clear row
    relation  "the cup next to the laptop" every instance that stands so to the one other
    plural    "both dogs", "all the cups"  every instance of a class with several

A phrase is made only when the annotation decides it: an instance that is borderline for a
phrase (reddish, nearly as far left) means no such phrase. Targets below
`max(SMALLEST_TARGET_PIXELS, SMALLEST_TARGET_SHARE of the photo)` are dropped and counted: at the
sizes a model works at they are a handful of output pixels. The same rules make the phrases of
every split. Deterministic: the random choices of an image depend on the seed and its id alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt

from training.data.class_words import COLOURLESS, can_be_above, can_carry, is_surface_of
from training.data.coco_annotations import AnnotationPolicy, Instance
from training.data.colours import (
    COLOUR_NAMES,
    STRICT_COLOURS,
    ColourRule,
    clear_colour,
    colour_shares,
    colour_verdict,
    name_pixels,
)
from training.data.layout import (
    MOST_ORDERED,
    REFERENCE_SHARE,
    clear_order,
    in_one_row,
    on_verdict,
    places,
    relation_verdict,
    size_extremes,
)
from training.data.phrase_choice import DEFAULT_LIMITS, Candidate, PhraseLimits, choose
from training.data.phrase_records import ObjectRecord, PhraseRecord, encode_rle
from training.data.phrase_templates import (
    ORDINAL_WORDS,
    Noun,
    class_phrase,
    colour_phrase,
    noun_of,
    ordinal_phrase,
    plural_phrase,
    position_phrase,
    relation_phrase,
    size_phrase,
    spoken_noun,
    swap_left_right,
)

KINDS = ("class", "colour", "position", "relation", "ordinal", "size", "plural")
SMALLEST_TARGET_SHARE = 0.001
SMALLEST_TARGET_PIXELS = 64
SMALLEST_COLOURED_SHARE = 0.003  # smaller things take on the colour of their light and outline
_OPPOSITE = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class PhotoPhrases:
    """The phrases of an image, and how many were dropped for a small target, by kind.

    objects: the things of all complete classes whose instances a person tells apart; what the
        phrases' `matched` and `anchors` count in.
    """

    phrases: tuple[PhraseRecord, ...]
    too_small: Mapping[str, int]
    objects: tuple[ObjectRecord, ...]


def make_phrases(
    image: npt.NDArray[np.uint8],
    instances: Mapping[str, Sequence[Instance]],
    policy: AnnotationPolicy,
    *,
    image_id: str,
    seed: int = 0,
    limits: PhraseLimits = DEFAULT_LIMITS,
    colours: ColourRule = STRICT_COLOURS,
) -> PhotoPhrases:
    """Phrases with masks for one image.

    Args:
        image: (H, W, 3) uint8 sRGB, for the colours.
        instances: the complete classes of the image (`coco_annotations.decode_instances`).
        policy: what the masks of the image's source mean.
        image_id: with `seed`, the only source of randomness.
        colours: which things have a colour.
    """
    rng = Random(hashlib.sha256(f"{seed}:{image_id}".encode()).digest())
    scene = _Scene(image, instances, policy, rng, colours)
    too_small: Counter[str] = Counter()
    by_kind: dict[str, list[Candidate]] = {}
    texts: set[str] = set()
    smallest = max(SMALLEST_TARGET_PIXELS, SMALLEST_TARGET_SHARE * image.shape[0] * image.shape[1])
    for kind in KINDS:
        kept = by_kind.setdefault(kind, [])
        for candidate in scene.candidates(kind):
            if sum(scene.things(candidate)[index].area for index in candidate.target) < smallest:
                too_small[kind] += 1
            elif candidate.phrase not in texts:
                texts.add(candidate.phrase)
                kept.append(candidate)
    chosen = choose(by_kind, limits, policy.layout_limit, rng)
    records = tuple(scene.record(candidate) for candidate in chosen)
    return PhotoPhrases(records, too_small, scene.objects())


class _Scene:
    """One image while its phrases are made: its classes, nouns and measured colours."""

    def __init__(
        self,
        image: npt.NDArray[np.uint8],
        instances: Mapping[str, Sequence[Instance]],
        policy: AnnotationPolicy,
        rng: Random,
        colours: ColourRule,
    ) -> None:
        self.height, self.width = image.shape[:2]
        self.pixels = self.height * self.width
        self.policy = policy
        self.rng = rng
        self.colours = colours
        self.groups = {name: group for group, name in enumerate(sorted(instances))}
        self.classes = {name: list(instances[name]) for name in sorted(instances)}
        self.pixel_colours = name_pixels(image)
        self._first_object: dict[str, int] = {}
        count = 0
        for name, things in self.classes.items():
            if not self._whole_class_only(name):
                self._first_object[name] = count
                count += len(things)

    def things(self, candidate: Candidate) -> list[Instance]:
        return self.classes[candidate.class_name]

    def candidates(self, kind: str) -> Iterator[Candidate]:
        """All phrases of a kind that the annotation decides."""
        make: dict[str, Callable[[str, Noun, list[Instance]], Iterator[Candidate]]] = {
            "class": self._class,
            "colour": self._colour,
            "position": self._position,
            "relation": self._relation,
            "ordinal": self._ordinal,
            "size": self._size,
            "plural": self._plural,
        }
        for name, things in self.classes.items():
            if kind not in ("class", "colour") and self._whole_class_only(name):
                continue
            yield from make[kind](name, noun_of(name), things)

    def _whole_class_only(self, name: str) -> bool:
        """Whether the masks of a class are not the things that a person would count."""
        return self.policy.regions or name in self.policy.stuff

    def objects(self) -> tuple[ObjectRecord, ...]:
        """The things of all classes that can be counted, in the order that phrases count in."""
        return tuple(
            ObjectRecord(name, self.groups[name], encode_rle(thing.mask))
            for name in self._first_object
            for thing in self.classes[name]
        )

    def record(self, candidate: Candidate) -> PhraseRecord:
        """The candidate with its masks drawn."""
        things = self.things(candidate)
        swapped_rle = None
        if candidate.swapped_target:
            swapped_rle = encode_rle(_union(things, candidate.swapped_target))
        target = _union(things, candidate.target)
        first = self._first_object.get(candidate.class_name)
        anchor = self._first_object.get(candidate.anchor)
        return PhraseRecord(
            phrase=candidate.phrase,
            kind=candidate.kind,
            class_name=candidate.class_name,
            rle=encode_rle(target),
            discriminative=candidate.telling,
            swapped=swap_left_right(candidate.phrase),
            swapped_rle=swapped_rle,
            group=self.groups[candidate.class_name],
            matched=None if first is None else tuple(first + index for index in candidate.target),
            anchors=() if anchor is None else (anchor,),
        )

    def _candidate(
        self,
        kind: str,
        name: str,
        phrase: str,
        target: Sequence[int],
        swapped_target: Sequence[int] = (),
        anchor: str = "",
    ) -> Candidate:
        telling = len(target) < len(self.classes[name])
        return Candidate(kind, name, phrase, tuple(target), telling, tuple(swapped_target), anchor)

    def _class(self, name: str, noun: Noun, things: list[Instance]) -> Iterator[Candidate]:
        phrase = class_phrase(spoken_noun(noun, self.rng), len(things), self.rng)
        yield self._candidate("class", name, phrase, range(len(things)))

    def _colour(self, name: str, noun: Noun, things: list[Instance]) -> Iterator[Candidate]:
        if name in COLOURLESS:
            return
        shares = [colour_shares(self.pixel_colours, thing.mask) for thing in things]
        named = {clear_colour(share, self.colours) for share in shares}
        for colour in COLOUR_NAMES:
            if colour not in named:
                continue
            verdicts = [colour_verdict(share, colour, self.colours) for share in shares]
            if "borderline" in verdicts:
                continue
            target = tuple(i for i, verdict in enumerate(verdicts) if verdict == "yes")
            if min(things[i].area for i in target) < SMALLEST_COLOURED_SHARE * self.pixels:
                continue
            spoken = spoken_noun(noun, self.rng)
            phrase = colour_phrase(spoken, colour, len(target), self.rng)
            yield self._candidate("colour", name, phrase, target)

    def _position(self, name: str, noun: Noun, things: list[Instance]) -> Iterator[Candidate]:
        found = places(things, self.height, self.width)
        at = {place.side: place for place in found}
        for place in found:
            spoken = spoken_noun(noun, self.rng)
            phrase = position_phrase(spoken, place.side, place.absolute, len(things), self.rng)
            mirror = at.get(_OPPOSITE.get(place.side, ""))
            # "on the right" is only as decided as the other end is: absolute for absolute.
            decided = mirror is not None and (mirror.absolute or not place.absolute)
            swapped = (mirror.index,) if mirror is not None and decided else ()
            yield self._candidate("position", name, phrase, (place.index,), swapped)

    def _ordinal(self, name: str, noun: Noun, things: list[Instance]) -> Iterator[Candidate]:
        if not noun.countable or not 3 <= len(things) <= MOST_ORDERED or not in_one_row(things):
            return
        order = clear_order(things, 0, self.width)
        if order is None:
            return
        for side, line in (("left", order), ("right", order[::-1])):
            for rank in range(1, min(len(line), max(ORDINAL_WORDS)) + 1):
                if rank > (len(line) + 1) // 2 + 1:
                    continue  # people count from the nearer side
                phrase = ordinal_phrase(spoken_noun(noun, self.rng), rank, side, self.rng)
                target, swapped = (line[rank - 1],), (line[-rank],)
                yield self._candidate("ordinal", name, phrase, target, swapped)

    def _size(self, name: str, noun: Noun, things: list[Instance]) -> Iterator[Candidate]:
        for largest, index in zip((True, False), size_extremes(things), strict=True):
            if index is not None:
                spoken = spoken_noun(noun, self.rng)
                phrase = size_phrase(spoken, largest, len(things), self.rng)
                yield self._candidate("size", name, phrase, (index,))

    def _plural(self, name: str, noun: Noun, things: list[Instance]) -> Iterator[Candidate]:
        if noun.countable and 2 <= len(things) <= MOST_ORDERED:
            phrase = plural_phrase(spoken_noun(noun, self.rng), len(things), self.rng)
            yield self._candidate("plural", name, phrase, range(len(things)))

    def _relation(self, name: str, noun: Noun, things: list[Instance]) -> Iterator[Candidate]:
        for other, references in self.classes.items():
            if other == name or len(references) != 1 or other in self.policy.stuff:
                continue
            reference = references[0]
            if reference.area < REFERENCE_SHARE * self.pixels:
                continue
            relations = [] if is_surface_of(other, name) else ["left", "right", "next to"]
            relations += ["above", "below"] if can_be_above(name, other) else []
            found: dict[str, tuple[int, ...] | None] = {
                relation: _matches([relation_verdict(t, reference, relation) for t in things])
                for relation in relations
            }
            if can_carry(other, name):
                found["on"] = _matches([on_verdict(thing, reference) for thing in things])
            for relation, target in found.items():
                if not target:
                    continue
                spoken, spoken_other = (
                    spoken_noun(noun, self.rng),
                    spoken_noun(noun_of(other), self.rng),
                )
                phrase = relation_phrase(spoken, relation, spoken_other, len(target), self.rng)
                swapped = found.get(_OPPOSITE.get(relation, "")) or ()
                yield self._candidate("relation", name, phrase, target, swapped, other)


def _matches(verdicts: Sequence[str]) -> tuple[int, ...] | None:
    """Indices of "yes"; None when one is borderline."""
    if "borderline" in verdicts:
        return None
    return tuple(index for index, verdict in enumerate(verdicts) if verdict == "yes")


def _union(things: Sequence[Instance], indices: Sequence[int]) -> npt.NDArray[np.bool_]:
    return np.asarray(np.any([things[index].mask for index in indices], axis=0), dtype=bool)
