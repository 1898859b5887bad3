"""Phrases to train on whose class is not in their photo: the right answer to them is nothing.

A class without a mask is absent only where its source says so: COCO's complete photos annotate
every class of COCO; photos of a street hold nothing from indoors; who is dressed in trousers wears
no skirt. Of everything else nothing is known, and nothing is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from random import Random

import numpy as np

from .class_words import INDOORS, OUTFITS
from .coco_annotations import POLICIES
from .cutouts import COMPLETE_SOURCES
from .lmdb_store import PhraseStore
from .phrase_records import PhraseRecord, encode_rle
from .phrase_templates import class_phrase, noun_of

KIND = "absent"
_BLANK = 0.25  # share of photos that are asked for nothing at all
_CLOTHES = "clothing-co-parsing"
_DRESSED = frozenset({_CLOTHES})
_STREETS = frozenset({_CLOTHES, "building-facade-segmentation"})


def present_classes(store: PhraseStore, image_id: str) -> set[str]:
    """Every class that a phrase or an object of the photo has."""
    named = {phrase.class_name for phrase in store.phrases(image_id)}
    return named | {each.class_name for each in store.objects(image_id) or ()}


def absent_phrase(text: str, class_name: str, height: int, width: int) -> PhraseRecord:
    """A phrase about nothing in a photo (height, width)."""
    nothing = encode_rle(np.zeros((height, width), dtype=bool))
    return PhraseRecord(text, KIND, class_name, nothing, False, None, None, -1, matched=())


class AbsentClasses:
    """Classes to ask for in vain, each about as often as photos have it.

    Args:
        photos: stores with the ids of their photos that train; the same photo counts once.

    Raises:
        ValueError: if no class of any photo is known to be absent.
    """

    def __init__(self, photos: Sequence[tuple[PhraseStore, Sequence[str]]]) -> None:
        self._complete: Counter[str] = Counter()
        self._worn: Counter[str] = Counter()
        seen: set[str] = set()
        for store, ids in photos:
            for image_id in ids:
                source = store.image(image_id).source
                if image_id in seen or source not in COMPLETE_SOURCES | _DRESSED:
                    continue
                seen.add(image_id)
                counter = self._complete if source in COMPLETE_SOURCES else self._worn
                counter.update(present_classes(store, image_id))
        if not self._complete and not self._worn:
            raise ValueError(
                "data.absent needs photos of which it is known what they do not show (source "
                f"{', '.join(sorted(COMPLETE_SOURCES | _DRESSED))}); leave it at 0 for these stores"
            )

    def draw(
        self, store: PhraseStore, image_id: str, count: int, rng: np.random.Generator
    ) -> list[PhraseRecord]:
        """At most `count` phrases of different classes, and now and then one without words."""
        record = store.image(image_id)
        allowed = dict(self._candidates(record.source, present_classes(store, image_id)))
        shares = np.array(list(allowed.values()), dtype=np.float64)
        count = min(count, len(allowed))
        chosen = rng.choice(list(allowed), count, False, shares / shares.sum()) if count else ()
        words = Random(int(rng.integers(1 << 32)))
        asked = [(str(name), _wording(str(name), words)) for name in chosen]
        if words.random() < _BLANK:
            asked.append(("", ""))
        return [absent_phrase(text, name, record.height, record.width) for name, text in asked]

    def _candidates(self, source: str, present: Collection[str]) -> Iterator[tuple[str, float]]:
        """Names that the photo lacks, and how often they are asked for."""
        for name, often in sorted(self._complete.items()):  # sets have no order to repeat
            known = source in COMPLETE_SOURCES or (source in _STREETS and name in INDOORS)
            if known and name not in present:
                yield name, often / self._complete.total()
        if source in _DRESSED:
            for name, often in sorted(self._worn.items()):
                if _not_worn(name, present):
                    yield name, often / self._worn.total()


def _not_worn(name: str, present: Collection[str]) -> bool:
    """Whether nothing that is worn could be called so: neither by outfit nor by a broader name."""
    outfits = [outfit for outfit in OUTFITS if name in outfit]
    covers = POLICIES[_CLOTHES].covers
    called = set(covers.get(name, ())) | {each for each, under in covers.items() if name in under}
    return bool(outfits) and not called.union(*outfits).intersection(present)


def _wording(name: str, rng: Random) -> str:
    return class_phrase(noun_of(name), rng.choice((1, 1, 2)), rng)
