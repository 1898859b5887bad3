"""The wording of phrases: category names to nouns, and the sentence patterns of each kind.

Nothing here looks at an image. A category of an annotation file ("balcony-fence", "t-shirt",
"wine glass", "jeans") becomes a `Noun` that knows its singular and plural, and each kind of
phrase has several patterns so that a model does not learn one wording by heart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from training.data.class_words import MASS, PAIRED

NUMBER_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
ORDINAL_WORDS = {1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth"}

_IRREGULAR_PLURALS = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "mouse": "mice",
    "knife": "knives",
    "scarf": "scarves",
    "shelf": "shelves",
    "leaf": "leaves",
    "foot": "feet",
    "tooth": "teeth",
    "sheep": "sheep",
    "fish": "fish",
    "deer": "deer",
    "aircraft": "aircraft",
}

# Words a person would use as well; the class name itself stays the canonical noun.
_SYNONYMS = {
    "couch": "sofa",
    "tv": "television",
    "cell phone": "phone",
    "motorcycle": "motorbike",
    "bicycle": "bike",
    "airplane": "plane",
    "refrigerator": "fridge",
    "potted plant": "plant",
    "dining table": "table",
    "hair drier": "hair dryer",
    "facade": "building facade",
    "balcony fence": "balcony railing",
    "sports ball": "ball",
    "shop": "storefront",
    "pants": "trousers",
}
_SYNONYM_SHARE = 0.15

_SWAP = {"left": "right", "right": "left"}
_SWAP_PATTERN = re.compile(
    r"\b(left|right)(?=(most|hand|handed|side|ward|wards|er|est|y)?\b)", re.IGNORECASE
)


@dataclass(frozen=True)
class Noun:
    """A category as people say it.

    `countable` is False for paired and mass nouns ("jeans", "vegetation"): they get no number
    words and no indefinite article.
    """

    singular: str
    plural: str
    countable: bool = True
    takes_plural_verb: bool = False

    def form(self, count: int) -> str:
        """The form for `count` things: "dog" for one, "dogs" otherwise."""
        return self.singular if count == 1 else self.plural


def clean_category_name(name: str) -> str:
    """Lower case, hyphens and underscores to spaces; "t-shirt" keeps its hyphen."""
    words = re.sub(r"[_\s]+", " ", name.strip().lower())
    return re.sub(r"(?<=\w\w)-(?=\w)", " ", words)


def noun_of(category: str) -> Noun:
    """The noun of a category name, as annotated or already clean."""
    name = clean_category_name(category)
    head = name.rsplit(" ", 1)[-1]
    if head in MASS:
        return Noun(name, name, countable=False)
    if head in PAIRED or _looks_plural(head):
        return Noun(name, name, countable=False, takes_plural_verb=True)
    return Noun(name, name[: len(name) - len(head)] + _pluralise(head))


def spoken_noun(noun: Noun, rng: Random) -> Noun:
    """Now and then a synonym ("sofa" for "couch"), so that the words vary as people's do."""
    synonym = _SYNONYMS.get(noun.singular)
    if synonym is None or rng.random() >= _SYNONYM_SHARE:
        return noun
    return noun_of(synonym)


def swap_left_right(phrase: str) -> str | None:
    """`phrase` with left and right exchanged, "leftmost" and "Righthand" too; None without any."""
    swapped = _SWAP_PATTERN.sub(_other_side, phrase)
    return None if swapped == phrase else swapped


def _other_side(match: re.Match[str]) -> str:
    word = match[1]
    other = _SWAP[word.lower()]
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other


def class_phrase(noun: Noun, count: int, rng: Random) -> str:
    """All things of a class: "the dogs", "dogs", "dog"."""
    patterns = [f"the {noun.form(count)}", noun.form(count)]
    if count == 1 and noun.countable:
        patterns.append(f"{_article(noun.singular)} {noun.singular}")
    elif count > 1:
        patterns.append(noun.singular)
    return rng.choice(patterns)


def colour_phrase(noun: Noun, colour: str, count: int, rng: Random) -> str:
    """Things of one colour: "the red car", "red cars", "the car that is red"."""
    verb = "are" if count > 1 or noun.takes_plural_verb else "is"
    form = noun.form(count)
    short = f"{colour} {form}"
    return rng.choice([f"the {short}", f"the {short}", short, f"the {form} that {verb} {colour}"])


def size_phrase(noun: Noun, largest: bool, count: int, rng: Random) -> str:
    """The largest or smallest of `count` things; the comparative when there are two."""
    if count == 2:
        words = ["bigger", "larger", "big"] if largest else ["smaller", "small"]
    else:
        words = ["biggest", "largest"] if largest else ["smallest"]
    return _maybe_the(f"{rng.choice(words)} {noun.singular}", rng)


def position_phrase(noun: Noun, side: str, absolute: bool, count: int, rng: Random) -> str:
    """One thing by its place.

    `side` is left, right, top, bottom or middle. `absolute` says that the thing also lies in
    that part of the photo while the others do not, which "on the left" needs and "leftmost"
    does not.
    """
    name = noun.singular
    if side == "middle":
        patterns = [f"middle {name}", f"{name} in the middle", f"{name} in the centre"]
    elif side in ("left", "right"):
        patterns = [f"{side}most {name}", f"{name} furthest to the {side}"]
        if absolute:
            patterns += [f"{name} on the {side}", f"{side} {name}", f"{name} on the {side} side"]
        elif count == 2:
            patterns += [f"{side} {name}"]
    else:
        patterns = [f"{'topmost' if side == 'top' else 'lowest'} {name}"]
        if absolute:
            patterns += [f"{name} at the {side}", f"{side} {name}"]
    return _maybe_the(rng.choice(patterns), rng)


def ordinal_phrase(noun: Noun, rank: int, side: str, rng: Random) -> str:
    """The `rank`-th (1 = outermost) thing counted from `side`."""
    word = ORDINAL_WORDS[rank]
    patterns = [f"{word} {noun.singular} from the {side}"]
    if rank > 1:
        patterns.append(f"{noun.singular} {word} from the {side}")
    return _maybe_the(rng.choice(patterns), rng)


def relation_phrase(noun: Noun, relation: str, reference: Noun, count: int, rng: Random) -> str:
    """Things by another thing: "the cup to the left of the laptop"."""
    wordings = {
        "left": ["to the left of", "left of"],
        "right": ["to the right of", "right of"],
        "above": ["above"],
        "below": ["below"],
        "next to": ["next to", "beside"],
        "on": ["on"],
    }[relation]
    words = f"{noun.form(count)} {rng.choice(wordings)} the {reference.singular}"
    return _maybe_the(words, rng)


def plural_phrase(noun: Noun, count: int, rng: Random) -> str:
    """All of several things: "all the chairs", "both dogs", "three cups"."""
    patterns = [f"all the {noun.plural}", f"all {noun.plural}"]
    if count in NUMBER_WORDS:
        number = NUMBER_WORDS[count]
        patterns += [f"{number} {noun.plural}", f"the {number} {noun.plural}"]
    if count == 2:
        patterns.append(f"both {noun.plural}")
    return rng.choice(patterns)


def _maybe_the(words: str, rng: Random) -> str:
    return words if rng.random() < 0.3 else f"the {words}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeio" or word.startswith("umb") else "a"


def _looks_plural(word: str) -> bool:
    return word.endswith("s") and not word.endswith(("ss", "us", "is"))


def _pluralise(word: str) -> str:
    if word in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in set("aeiou"):
        return word[:-1] + "ies"
    return word + "s"
