"""Layouts: what a phrase says is what its mask shows, and a scene follows from its seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.training.drawn_coco import DrawnSet
from training.__main__ import main
from training.data.coco_annotations import AS_WRITTEN, Instance, instance_of, read_annotations
from training.data.colours import COLOUR_NAMES, clear_colour, colour_shares, name_pixels
from training.data.cutouts import CutOutBank
from training.data.lmdb_store import PhraseStore
from training.data.phrase_records import ObjectRecord, PhraseRecord, decode_rle
from training.data.scenes import compose_scene
from training.data.sprites import SPRITE_NAMES, draw_sprite, repaint
from training.data.store_building import PrepareReport
from training.prepare_scenes import SceneSource, prepare_scenes

_CLASSES = ("cup", "book", "dog", "truck")
Labelled = list[tuple[PhraseRecord, list[ObjectRecord], np.ndarray]]


@pytest.fixture(scope="module")
def drawn_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight completely annotated photos with one large thing each; the last two validate."""
    made = DrawnSet(tmp_path_factory.mktemp("drawn-photos"), _CLASSES)
    rng = np.random.default_rng(0)
    for number in range(8):
        photo = Image.fromarray(rng.integers(80, 170, (120, 160, 3), dtype=np.uint8))
        box = (50, 30, 50 + 40 + 4 * number, 30 + 50)
        ImageDraw.Draw(photo).ellipse(box, fill=(30 * number, 200 - 20 * number, 60))
        made.annotate(number % 4 + 1, *box)
        made.add(photo, "val" if number >= 6 else "train", source="coco")
    return made.write()


@pytest.fixture(scope="module")
def scenes(drawn_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> PhraseStore:
    out = tmp_path_factory.mktemp("scenes") / "scenes.lmdb"
    prepare_scenes(
        drawn_photos, drawn_photos.parent, out, {"train": 50, "val": 8}, 3, show_progress=False
    )
    return PhraseStore(out)


@pytest.fixture(scope="module")
def labelled(scenes: PhraseStore) -> Labelled:
    """Every phrase with the objects of its scene and the scene's pixels."""
    found = []
    for image_id in scenes.image_ids("train"):
        objects, pixels = scenes.objects(image_id), scenes.photo(image_id)
        assert objects is not None
        found += [(phrase, objects, pixels) for phrase in scenes.phrases(image_id)]
    return found


def _things(objects: list[ObjectRecord], group: int) -> dict[int, Instance]:
    return {
        index: instance_of(decode_rle(each.rle))
        for index, each in enumerate(objects)
        if each.group == group
    }


def _of(labelled: Labelled, kind: str) -> Iterator[tuple[PhraseRecord, dict[int, Instance]]]:
    found = 0
    for phrase, objects, _ in labelled:
        if phrase.kind == kind:
            found += 1
            yield phrase, _things(objects, phrase.group)
    assert found > 5, f"too few {kind} phrases to tell"


def test_a_mask_is_the_union_of_what_the_phrase_matches(labelled: Labelled) -> None:
    for phrase, objects, _ in labelled:
        assert phrase.matched is not None
        union = np.zeros(phrase.rle["size"], dtype=bool)
        for index in phrase.matched:
            assert objects[index].group == phrase.group
            union |= decode_rle(objects[index].rle)
        assert (decode_rle(phrase.rle) == union).all()
        siblings = sum(each.group == phrase.group for each in objects)
        assert phrase.discriminative == (len(phrase.matched) < siblings)


def test_objects_do_not_overlap(scenes: PhraseStore) -> None:
    for image_id in scenes.image_ids("train"):
        masks = [decode_rle(each.rle) for each in scenes.objects(image_id) or ()]
        assert np.sum(masks, axis=0).max() <= 1


@pytest.mark.parametrize(
    ("words", "axis", "sign"),
    [("leftmost", 0, 1), ("rightmost", 0, -1), ("topmost", 1, 1), ("lowest", 1, -1)],
)
def test_the_outermost_is_the_outermost(
    labelled: Labelled, words: str, axis: int, sign: int
) -> None:
    for phrase, things in _of(labelled, "position"):
        coloured = any(colour in phrase.phrase.split() for colour in COLOUR_NAMES)
        if words in phrase.phrase and not coloured:
            (target,) = phrase.matched or ()
            ends = [sign * thing.centre[axis] for thing in things.values()]
            assert sign * things[target].centre[axis] == min(ends)


def test_a_corner_holds_its_thing_and_no_sibling(labelled: Labelled) -> None:
    seen = set()
    for phrase, things in _of(labelled, "position"):
        words = set(phrase.phrase.split())
        for down in ("top", "bottom"):
            for across in ("left", "right"):
                if {down, across} <= words:
                    seen.add((down, across))
                    height, width = phrase.rle["size"]
                    (target,) = phrase.matched or ()
                    for index, thing in things.items():
                        x, y = thing.centre[0] / width, thing.centre[1] / height
                        x = x if across == "left" else 1 - x
                        y = y if down == "top" else 1 - y
                        assert (max(x, y) < 0.5) == (index == target)
    assert len(seen) > 1


def test_counting_starts_at_the_named_side(labelled: Labelled) -> None:
    ranks = {"first": 0, "second": 1, "third": 2, "fourth": 3}
    for phrase, things in _of(labelled, "ordinal"):
        side = phrase.phrase.rsplit(" ", 1)[1]
        axis = 0 if side in ("left", "right") else 1
        sign = -1 if side in ("right", "bottom") else 1
        order = sorted(things, key=lambda index: sign * things[index].centre[axis])
        (rank,) = (value for word, value in ranks.items() if word in phrase.phrase.split())
        assert phrase.matched == (order[rank],)


def test_the_largest_is_the_largest(labelled: Labelled) -> None:
    for phrase, things in _of(labelled, "size"):
        (target,) = phrase.matched or ()
        areas = {index: thing.area for index, thing in things.items()}
        large = any(word in phrase.phrase for word in ("big", "large"))
        assert areas[target] == (max if large else min)(areas.values())


def test_colours_are_those_of_the_pixels(labelled: Labelled) -> None:
    """Measured again in the stored JPEG; its compression may leave one in a hundred unclear."""
    right = wrong = 0
    for phrase, objects, pixels in labelled:
        if phrase.kind != "colour":
            continue
        (colour,) = (name for name in COLOUR_NAMES if name in phrase.phrase.split())
        names = name_pixels(pixels)
        for index in phrase.matched or ():
            found = clear_colour(colour_shares(names, decode_rle(objects[index].rle)))
            right, wrong = right + (found == colour), wrong + (found not in (colour, None))
    assert right > 30 and wrong <= right / 50


def test_what_is_negated_is_not_meant(labelled: Labelled) -> None:
    told = 0
    for phrase, objects, pixels in labelled:
        words = phrase.phrase.split()
        if phrase.kind != "negation" or " not " not in phrase.phrase:
            continue
        denied = [word for word in words[words.index("not") :] if word in COLOUR_NAMES]
        if phrase.phrase.startswith("the") and denied:
            names = name_pixels(pixels)
            for index in phrase.matched or ():
                told += 1
                found = clear_colour(colour_shares(names, decode_rle(objects[index].rle)))
                assert found != denied[0]
    assert told > 5


def test_relations_hold_to_their_anchor(labelled: Labelled) -> None:
    sides = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
    told = 0
    for phrase, objects, _ in labelled:
        for words, (axis, sign) in sides.items():
            if phrase.kind == "relation" and words in phrase.phrase:
                (anchor,) = phrase.anchors
                assert objects[anchor].class_name in phrase.phrase
                there = instance_of(decode_rle(objects[anchor].rle)).centre[axis]
                for index in phrase.matched or ():
                    told += 1
                    here = instance_of(decode_rle(objects[index].rle)).centre[axis]
                    assert sign * (here - there) > 0
    assert told > 5


def test_nothing_matches_a_phrase_without_a_target(labelled: Labelled) -> None:
    kinds = set()
    for phrase, objects, pixels in labelled:
        if phrase.kind != "no_target":
            continue
        assert not decode_rle(phrase.rle).any() and phrase.matched == ()
        there = [each for each in objects if each.class_name == phrase.class_name]
        colours = [name for name in COLOUR_NAMES if name in phrase.phrase.split()]
        if there and colours:
            kinds.add("absent colour")
            names = name_pixels(pixels)
            for each in there:
                assert clear_colour(colour_shares(names, decode_rle(each.rle))) != colours[0]
        elif not there:
            kinds.add("absent class")
    assert kinds == {"absent colour", "absent class"}


def test_no_class_is_pasted_where_the_photo_may_hold_it(drawn_photos: Path) -> None:
    content = read_annotations(drawn_photos, AS_WRITTEN)
    bank = CutOutBank(content.images, content.categories, drawn_photos.parent)
    assert [each.present for each in bank.backgrounds[:2]] == [{"cup"}, {"book"}]
    for seed in range(40):
        scene = compose_scene(bank, Random(seed))
        assert not scene.absent & scene.instances.keys()


def test_the_same_seed_makes_the_same_scene(drawn_photos: Path) -> None:
    folder = drawn_photos.parent
    first, again, other = (
        SceneSource(drawn_photos, folder, {"train": 3}, seed) for seed in (0, 0, 1)
    )
    made = [source.make(2, PrepareReport()) for source in (first, again, other)]
    assert made[0] is not None and made[2] is not None
    assert made[0] == made[1]
    assert made[0].jpeg != made[2].jpeg
    first.make(0, PrepareReport())
    assert first.make(2, PrepareReport()) == made[0], "what was made before must not matter"


def test_validation_layouts_hold_no_training_photo(
    drawn_photos: Path, tmp_path: Path, scenes: PhraseStore
) -> None:
    """With only the validation photos at hand the same validation layouts come out."""
    for path in (drawn_photos, *(drawn_photos.parent / f"{n}.jpg" for n in (6, 7))):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    source = SceneSource(tmp_path / drawn_photos.name, tmp_path, {"train": 50, "val": 8}, 3)
    for index in range(50, 58):
        made = source.make(index, PrepareReport())
        assert made is not None
        assert made.jpeg == scenes.jpeg(made.record.image_id)


@pytest.mark.parametrize("colour", COLOUR_NAMES)
def test_drawn_and_painted_things_have_their_colour(colour: str) -> None:
    """Shade may carry a thing over a border; phrases are made of what is measured afterwards."""
    rng = Random(0)
    right = 0
    for name in SPRITE_NAMES:
        sprite = draw_sprite(name, colour, 60, rng)
        assert sprite.mask.any()
        other = draw_sprite(name, rng.choice(COLOUR_NAMES), 60, rng)
        for thing in (sprite, repaint(other, colour, rng)):
            found = clear_colour(colour_shares(name_pixels(thing.pixels), thing.mask))
            right += found == colour
    assert right >= len(SPRITE_NAMES)


def test_the_command_makes_and_resumes_a_store(
    drawn_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.lmdb"
    command = ["prepare", "scenes", "--annotations", str(drawn_photos), "--out", str(out)]
    assert main([*command, "--train", "4", "--val", "2"]) == 0
    told = capsys.readouterr().out
    assert "negation" in told or "no_target" in told
    assert sorted(PhraseStore(out).splits) == ["train", "val"]
    assert main([*command, "--train", "5", "--val", "2"]) == 2
    assert "other annotations, another seed or other rules" in capsys.readouterr().err


def test_an_annotation_file_without_whole_things_is_refused(
    tiny_annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "scenes", "--annotations", str(tiny_annotations)]
    assert main([*command, "--out", str(tmp_path / "none.lmdb")]) == 2
    assert "layouts need whole objects" in capsys.readouterr().err


def test_real_photos_say_which_objects_they_mean(tiny_store: Path) -> None:
    store = PhraseStore(tiny_store)
    for image_id in store.image_ids("train"):
        objects = store.objects(image_id)
        assert objects is not None
        for phrase in store.phrases(image_id):
            assert phrase.matched is not None
            union = np.any([decode_rle(objects[index].rle) for index in phrase.matched], axis=0)
            assert (union == decode_rle(phrase.rle)).all()
            if phrase.kind == "relation":
                (anchor,) = phrase.anchors
                assert objects[anchor].group != phrase.group
