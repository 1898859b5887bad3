"""Phrases of layouts beyond those of real photos: corners, columns, insides, negation, nothing.

Each function yields (kind, phrase, matched things of the class) wherever the instances decide it,
by the same margins as `layout` and `colours`. What matches nothing is made too: `no_target`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.data.class_words import COLOURLESS
from training.data.coco_annotations import DEFAULT_POLICY, Instance
from training.data.colours import COLOUR_NAMES, colour_shares, colour_verdict, name_pixels
from training.data.instances import make_phrases
from training.data.layout import clear_order, places, relation_verdict
from training.data.phrase_choice import PhraseLimits
from training.data.phrase_records import ObjectRecord, PhraseRecord, encode_rle
from training.data.phrase_templates import (
    NUMBER_WORDS,
    ORDINAL_WORDS,
    Noun,
    class_phrase,
    noun_of,
    relation_phrase,
    spoken_noun,
    swap_left_right,
)
from training.data.scenes import Scene

LIMITS = PhraseLimits(
    per_image=14,
    per_kind=(
        ("colour", 4),
        ("position", 4),
        ("size", 2),
        ("ordinal", 4),
        ("relation", 3),
        ("plural", 1),
        ("class", 2),
    ),
)
_MOST_OF_A_KIND = {"position": 3, "ordinal": 2, "relation": 3, "plural": 1, "negation": 2}
_NO_TARGETS = 2
_BLANK_SHARE = 0.06
_CORNER, _OPPOSITE_HALF = 0.36, 0.5  # shares of the picture
_SIDES = {"left": "right", "right": "left"}


class Made(NamedTuple):
    """A phrase about things of one class: the places of those that match, and the mirrored form's.

    anchor: the class whose only thing the phrase names beside its own; "" for none.
    """

    kind: str
    phrase: str
    matched: tuple[int, ...]
    swapped: tuple[int, ...] = ()
    anchor: str = ""


@dataclass(frozen=True)
class _Class:
    """Things of one class in a scene. verdicts: by colour, of each thing."""

    name: str
    noun: Noun
    things: Sequence[Instance]
    verdicts: dict[str, list[str]]
    height: int
    width: int

    def of_colour(self, colour: str) -> tuple[int, ...] | None:
        """Things that clearly have the colour; None where one is borderline."""
        found = self.verdicts[colour]
        if "borderline" in found:
            return None
        return tuple(index for index, verdict in enumerate(found) if verdict == "yes")


class SceneText(NamedTuple):
    """The phrases of a scene, and the objects that they count in."""

    phrases: list[PhraseRecord]
    objects: tuple[ObjectRecord, ...]


def scene_phrases(scene: Scene, scene_id: str, seed: int, rng: Random) -> SceneText:
    """All phrases of a scene."""
    base = make_phrases(
        scene.image, scene.instances, DEFAULT_POLICY, image_id=scene_id, seed=seed, limits=LIMITS
    )
    maker = _Maker(scene, rng)
    texts = {phrase.phrase for phrase in base.phrases}
    records = list(base.phrases)
    for record in maker.records():
        if record.phrase not in texts:
            texts.add(record.phrase)
            records.append(record)
    return SceneText(records, base.objects)


class _Maker:
    def __init__(self, scene: Scene, rng: Random) -> None:
        self.scene, self.rng = scene, rng
        height, width = scene.image.shape[:2]
        pixel_colours = name_pixels(scene.image)
        self.names = sorted(scene.instances)
        self.classes = [
            _Class(
                name,
                noun_of(name),
                scene.instances[name],
                _colour_verdicts(pixel_colours, scene.instances[name]),
                height,
                width,
            )
            for name in self.names
        ]
        counts = [len(each.things) for each in self.classes]
        self.first = dict(zip(self.names, np.cumsum([0, *counts[:-1]]).tolist(), strict=True))

    def records(self) -> Iterator[PhraseRecord]:
        made: dict[str, list[tuple[_Class, Made]]] = {}
        for each in self.classes:
            for maker in (_corners, _columns, _coloured_sides, _coloured_counts, _negations):
                for phrase in maker(each, self.rng):
                    made.setdefault(phrase.kind, []).append((each, phrase))
            for phrase in self._insides(each):
                made.setdefault(phrase.kind, []).append((each, phrase))
        for kind, most in _MOST_OF_A_KIND.items():
            found = made.get(kind, [])
            for each, phrase in self.rng.sample(found, min(most, len(found))):
                yield self._record(each, phrase)
        yield from self._nothing()

    def _record(self, each: _Class, made: Made) -> PhraseRecord:
        shape = (each.height, each.width)
        swapped = encode_rle(_union(each.things, made.swapped, shape)) if made.swapped else None
        return PhraseRecord(
            phrase=made.phrase,
            kind=made.kind,
            class_name=each.name,
            rle=encode_rle(_union(each.things, made.matched, shape)),
            discriminative=len(made.matched) < len(each.things),
            swapped=swap_left_right(made.phrase),
            swapped_rle=swapped,
            group=self.names.index(each.name),
            matched=tuple(self.first[each.name] + index for index in made.matched),
            anchors=(self.first[made.anchor],) if made.anchor else (),
        )

    def _insides(self, each: _Class) -> Iterator[Made]:
        for other in self.classes:
            if other is each or len(other.things) != 1:
                continue
            verdicts = [_inside(thing, other.things[0]) for thing in each.things]
            target = tuple(index for index, verdict in enumerate(verdicts) if verdict == "yes")
            if target and "borderline" not in verdicts:
                name = each.noun.form(len(target))
                words = self.rng.choice(("inside the", "in the", "inside"))
                phrase = f"the {name} {words} {other.noun.singular}"
                yield Made("relation", phrase, target, anchor=other.name)

    def _nothing(self) -> Iterator[PhraseRecord]:
        """Phrases that match nothing here."""
        made = list(self._absent_classes())
        for each in self.classes:
            made += [(each.name, text) for text in _absent_colours(each, self.rng)]
            made += [(each.name, text) for text in self._untrue_relations(each)]
        chosen = self.rng.sample(made, min(_NO_TARGETS, len(made)))
        if self.rng.random() < _BLANK_SHARE:
            chosen.append((self.names[0] if self.names else "", ""))
        empty = np.zeros(self.scene.image.shape[:2], dtype=bool)
        for name, text in chosen:
            known = name in self.first and text != ""
            yield PhraseRecord(
                phrase=text,
                kind="no_target",
                class_name=name,
                rle=encode_rle(empty),
                discriminative=known,
                swapped=None,
                swapped_rle=None,
                group=self.names.index(name) if known else -1,
                matched=(),
            )

    def _absent_classes(self) -> Iterator[tuple[str, str]]:
        names = sorted(self.scene.absent)
        for name in self.rng.sample(names, min(2, len(names))):
            noun = spoken_noun(noun_of(name), self.rng)
            if self.rng.random() < 0.5 and name not in COLOURLESS:
                yield name, f"the {self.rng.choice(COLOUR_NAMES)} {noun.singular}"
            else:
                yield name, class_phrase(noun, 1, self.rng)

    def _untrue_relations(self, each: _Class) -> Iterator[str]:
        for other in self.classes:
            if other is each or len(other.things) != 1:
                continue
            relation = self.rng.choice(("left", "right", "above", "below"))
            if all(relation_verdict(t, other.things[0], relation) == "no" for t in each.things):
                yield "the " + relation_phrase(
                    each.noun, relation, other.noun, 1, self.rng
                ).removeprefix("the ")


# -- each kind --------------------------------------------------------------------------------


def _corners(each: _Class, rng: Random) -> Iterator[Made]:
    """One thing in a corner, the others in other quarters of the picture."""
    if len(each.things) < 2:
        return
    shares = [(x / each.width, y / each.height) for x, y in (t.centre for t in each.things)]
    for across in ("left", "right"):
        for down in ("top", "bottom"):
            depths = [_depth(share, across, down) for share in shares]
            inside = [k for k, (x, y) in enumerate(depths) if max(x, y) < _CORNER]
            near = [k for k, (x, y) in enumerate(depths) if max(x, y) < _OPPOSITE_HALF]
            if len(inside) == 1 and near == inside:
                name = each.noun.singular
                patterns = [
                    f"the {name} in the {down} {across} corner",
                    f"{down} {across} {name}",
                    f"the {name} at the {down} {across}",
                ]
                mirror = [_depth(share, _SIDES[across], down) for share in shares]
                there = tuple(k for k, (x, y) in enumerate(mirror) if max(x, y) < _CORNER)
                swapped = there if len(there) == 1 else ()
                yield Made("position", rng.choice(patterns), (inside[0],), swapped)
    distance = [float(np.hypot(x - 0.5, y - 0.5)) for x, y in shares]
    nearest = int(np.argmin(distance))
    others = [value for index, value in enumerate(distance) if index != nearest]
    if distance[nearest] < 0.15 and min(others) > 0.3 and len(others) > 1:
        name = each.noun.singular
        words = rng.choice((f"the {name} in the middle", f"the {name} in the centre"))
        yield Made("position", words, (nearest,))


def _columns(each: _Class, rng: Random) -> Iterator[Made]:
    """Counting from the top or the bottom of a column."""
    things = each.things
    if not (each.noun.countable and 3 <= len(things) <= 6 and _in_one_column(things)):
        return
    order = clear_order(things, 1, each.height)
    if order is None:
        return
    for side, line in (("top", order), ("bottom", order[::-1])):
        for rank in range(1, (len(line) + 1) // 2 + 1):
            phrase = f"the {ORDINAL_WORDS[rank]} {each.noun.singular} from the {side}"
            yield Made("ordinal", phrase, (line[rank - 1],))
    if len(things) == 3:
        yield Made("position", f"the middle {each.noun.singular}", (order[1],))


def _coloured_sides(each: _Class, rng: Random) -> Iterator[Made]:
    """The outermost of several things of one colour."""
    for colour, target in _told_apart(each):
        if len(target) < 2:
            continue
        subset = [each.things[index] for index in target]
        ends = {place.side: place.index for place in places(subset, each.height, each.width)}
        for side in ("left", "right"):
            if side in ends:
                name = f"{colour} {each.noun.singular}"
                patterns = (f"the leftmost {name}", f"the {name} furthest to the left")
                words = rng.choice(patterns).replace("left", side)
                other = ends.get(_SIDES[side])
                swapped = () if other is None else (target[other],)
                yield Made("position", words, (target[ends[side]],), swapped)


def _coloured_counts(each: _Class, rng: Random) -> Iterator[Made]:
    """Several of one colour among others."""
    for colour, target in _told_apart(each):
        if len(target) in NUMBER_WORDS and each.noun.countable:
            number, name = NUMBER_WORDS[len(target)], f"{colour} {each.noun.plural}"
            patterns = [f"the {number} {name}", f"all the {name}", f"{number} {name}"]
            patterns += [f"both {name}"] * (len(target) == 2)
            yield Made("plural", rng.choice(patterns), target)


def _negations(each: _Class, rng: Random) -> Iterator[Made]:
    """A colour or a side that the target has not."""
    name, count = each.noun.singular, len(each.things)
    told = list(_told_apart(each))
    for colour, target in told:
        rest = tuple(index for index in range(count) if index not in target)
        verb, form = ("is", name) if len(rest) == 1 else ("are", each.noun.plural)
        patterns = (f"the {form} that {verb} not {colour}", f"the {form}, not the {colour} one")
        yield Made("negation", rng.choice(patterns), rest)
        others = [other for other, has in told if other != colour and not set(has) & set(target)]
        if others and len(target) == 1:
            other = rng.choice(others)
            patterns = (
                f"the {colour} {name}, not the {other} one",
                f"not the {other} {name} but the {colour} one",
            )
            yield Made("negation", rng.choice(patterns), target)
    if count == 2:
        ends = {place.side: place for place in places(each.things, each.height, each.width)}
        for side, place in ends.items():
            if place.absolute and side in _SIDES:
                patterns = (f"the {name} that is not on the {side}", f"not the {side} {name}")
                rest = (1 - place.index,)
                yield Made("negation", rng.choice(patterns), rest, (place.index,))


def _absent_colours(each: _Class, rng: Random) -> list[str]:
    """Phrases with a colour that none of the things has or nearly has."""
    if each.name in COLOURLESS:
        return []
    missing = [c for c in COLOUR_NAMES if set(each.verdicts[c]) == {"no"}]
    chosen = rng.sample(missing, min(2, len(missing)))
    form = each.noun.singular if len(each.things) == 1 or rng.random() < 0.7 else each.noun.plural
    return [f"the {colour} {form}" for colour in chosen]


# -- what is measured -------------------------------------------------------------------------


def _told_apart(each: _Class) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Colours that some things of the class clearly have and the others clearly have not."""
    if each.name in COLOURLESS:
        return
    for colour in COLOUR_NAMES:
        target = each.of_colour(colour)
        if target and len(target) < len(each.things):
            yield colour, target


def _colour_verdicts(
    pixel_colours: npt.NDArray[np.uint8], things: Sequence[Instance]
) -> dict[str, list[str]]:
    shares = [colour_shares(pixel_colours, thing.mask) for thing in things]
    return {colour: [colour_verdict(share, colour) for share in shares] for colour in COLOUR_NAMES}


def _depth(share: tuple[float, float], across: str, down: str) -> tuple[float, float]:
    """How far from a corner, as shares of the picture."""
    x, y = share
    return (x if across == "left" else 1 - x), (y if down == "top" else 1 - y)


def _in_one_column(things: Sequence[Instance]) -> bool:
    lefts = max(thing.box[0] for thing in things)
    rights = min(thing.box[2] for thing in things)
    return rights - lefts >= 0.5 * min(thing.extent[0] for thing in things)


def _inside(thing: Instance, frame: Instance) -> str:
    """Whether the frame surrounds the thing: "yes", "no" where their boxes are apart."""
    x0, y0, x1, y1 = thing.box
    left, top, right, bottom = frame.box
    if x0 > left and y0 > top and x1 < right and y1 < bottom and _surrounds(frame, thing):
        return "yes"
    return "no" if x0 >= right or x1 <= left or y0 >= bottom or y1 <= top else "borderline"


def _surrounds(frame: Instance, thing: Instance) -> bool:
    """Whether the frame is seen on all four sides of the thing's centre."""
    x, y = (int(value) for value in thing.centre)
    row, column = frame.mask[y], frame.mask[:, x]
    return bool(row[:x].any() and row[x:].any() and column[:y].any() and column[y:].any())


def _union(
    things: Sequence[Instance], indices: Sequence[int], shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    for index in indices:
        mask |= things[index].mask
    return mask
