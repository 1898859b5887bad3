"""Layouts of drawn shapes alone on plain grounds: exact truth, and no photo in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random

import numpy as np
import numpy.typing as npt

from training.data.cutouts import Background, CutOut
from training.data.phrase_records import PhraseRecord
from training.data.scene_phrases import scene_phrases
from training.data.scenes import Scene, compose_scene

KINDS = ("class", "colour", "position", "ordinal", "size", "relation", "plural", "negation")
NO_TARGET = "no_target"


class NoPhotos:
    """A bank of cut-outs that has none, so that all things are drawn."""

    counts: Mapping[str, int] = {}
    backgrounds: Sequence[Background] = ()

    def cut(self, name: str, index: int) -> CutOut:
        """Never asked."""
        raise LookupError(name, index)

    def background(self, index: int) -> npt.NDArray[np.uint8]:
        """Never asked."""
        raise LookupError(index)


def drawn_layouts(seed: int) -> Iterator[tuple[Scene, list[PhraseRecord]]]:
    """Layout after layout with its phrases, without end; layout n follows from the seed and n."""
    number = 0
    while True:
        rng = Random(f"{seed}:{number}")
        scene = compose_scene(NoPhotos(), rng)
        yield scene, scene_phrases(scene, f"drawn-{number}", seed, rng).phrases
        number += 1


def one_of_each_kind(seed: int, rounds: int = 1) -> list[tuple[Scene, PhraseRecord]]:
    """`rounds` phrases of each kind, each on the next layout that has such a phrase.

    Taken in the order of the layouts, so nobody picks them.
    """
    layouts = drawn_layouts(seed)
    found = []
    for kind in (*KINDS, NO_TARGET) * rounds:
        for scene, phrases in layouts:
            fitting = [phrase for phrase in phrases if phrase.kind == kind and phrase.phrase]
            if fitting:
                found.append((scene, fitting[0]))
                break
    return found
