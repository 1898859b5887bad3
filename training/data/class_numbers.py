"""The class names of annotated objects, numbered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .lmdb_store import PhraseStore


def class_numbers(photos: Iterable[tuple[PhraseStore, Sequence[str]]]) -> dict[str, int]:
    """A number for every class that an object has, from 0, in the order of the names.

    Args:
        photos: stores with the ids of their photos that train.

    Raises:
        ValueError: if no photo has objects.
    """
    names = {
        each.class_name
        for store, ids in photos
        for image_id in ids
        for each in store.objects(image_id) or ()
    }
    if not names:
        raise ValueError(
            "objects.vocabulary_weight needs stores that tell objects apart (`prepare instances`, "
            "`prepare scenes`); leave it at 0 for these"
        )
    return {name: number for number, name in enumerate(sorted(names))}
