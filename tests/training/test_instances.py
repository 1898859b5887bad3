"""Phrases about drawn scenes, checked against what was drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import pytest

from training.data.coco_annotations import DEFAULT_POLICY, AnnotationPolicy, Instance, instance_of
from training.data.colours import COLOUR_NAMES, clear_colour, colour_shares, name_pixels
from training.data.instances import make_phrases
from training.data.lmdb_store import PhraseRecord, decode_rle
from training.data.phrase_choice import PhraseLimits
from training.data.phrase_templates import clean_category_name, noun_of, swap_left_right

HEIGHT, WIDTH = 120, 240
RGB = {
    "red": (200, 20, 30),
    "green": (30, 150, 40),
    "blue": (30, 60, 190),
    "yellow": (250, 220, 40),
    "black": (10, 10, 12),
    "white": (250, 250, 250),
}
EVERYTHING = PhraseLimits(
    per_image=1000,
    per_kind=tuple(
        (kind, 100)
        for kind in ("class", "colour", "position", "relation", "ordinal", "size", "plural")
    ),
)


@dataclass(frozen=True)
class Shape:
    """A filled rectangle, x0 y0 x1 y1 in pixels."""

    name: str
    colour: str
    box: tuple[int, int, int, int]

    @property
    def area(self) -> int:
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)

    @property
    def centre(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


def draw(shapes: Sequence[Shape]) -> tuple[np.ndarray, dict[str, list[Instance]]]:
    image = np.full((HEIGHT, WIDTH, 3), 140, dtype=np.uint8)
    instances: dict[str, list[Instance]] = {}
    for shape in shapes:
        x0, y0, x1, y1 = shape.box
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[y0:y1, x0:x1] = True
        image[mask] = RGB[shape.colour]
        instances.setdefault(shape.name, []).append(instance_of(mask))
    return image, instances


def union(shapes: Sequence[Shape]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for shape in shapes:
        x0, y0, x1, y1 = shape.box
        mask[y0:y1, x0:x1] = True
    return mask


def phrases_of(
    shapes: Sequence[Shape], policy: AnnotationPolicy = DEFAULT_POLICY, seeds: int = 8
) -> list[PhraseRecord]:
    """All phrases, in the wordings of several seeds."""
    image, instances = draw(shapes)
    return [
        phrase
        for seed in range(seeds)
        for phrase in make_phrases(
            image, instances, policy, image_id="1", seed=seed, limits=EVERYTHING
        ).phrases
    ]


def meant(phrase: str, shapes: Sequence[Shape]) -> list[Shape]:
    """What a phrase means in a drawn scene, read from its words alone."""
    by_x = sorted(shapes, key=lambda shape: shape.centre[0])
    by_y = sorted(shapes, key=lambda shape: shape.centre[1])
    ranks = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4}
    ordinal = re.search(r"(\w+) (?:\w+ )?from the (left|right)", phrase)
    colour = re.search(rf"\b({'|'.join(RGB)})\b", phrase)
    if ordinal:
        rank = next(rank for word, rank in ranks.items() if word in phrase)
        return [(by_x if ordinal.group(2) == "left" else by_x[::-1])[rank]]
    if colour:
        return [shape for shape in shapes if shape.colour == colour.group(1)]
    for words, chosen in (
        ("middle|centre", by_x[len(by_x) // 2]),
        ("left|leftmost", by_x[0]),
        ("right|rightmost", by_x[-1]),
        ("top|topmost", by_y[0]),
        ("bottom|lowest", by_y[-1]),
        ("big|bigger|biggest|larger|largest", max(shapes, key=lambda shape: shape.area)),
        ("small|smaller|smallest", min(shapes, key=lambda shape: shape.area)),
    ):
        if re.search(rf"\b({words})\b", phrase):
            return [chosen]
    return list(shapes)


def meant_relation(phrase: str, shapes: Sequence[Shape], other: Shape) -> list[Shape]:
    words = ("left of", "right of", "above", "below", "next to", "beside")
    relation = next(word for word in words if word in phrase)
    x, y = other.centre

    def beside(s: Shape) -> bool:
        """Nearer than any two shapes of these scenes that are clearly apart."""
        along_x = max(s.box[0] - other.box[2], other.box[0] - s.box[2], 0)
        along_y = max(s.box[1] - other.box[3], other.box[1] - s.box[3], 0)
        return float(np.hypot(along_x, along_y)) < 10

    near = {
        "left of": lambda s: s.box[2] <= x,
        "right of": lambda s: s.box[0] >= x,
        "above": lambda s: s.box[3] <= y,
        "below": lambda s: s.box[1] >= y,
        "next to": beside,
        "beside": beside,
    }[relation]
    return [shape for shape in shapes if near(shape)]


def random_scene(seed: int) -> list[Shape]:
    """Two to six kites and one cloud on a jittered grid, none overlapping; at times in one row."""
    rng = Random(seed)
    rows = [1] if seed % 4 == 0 else range(3)
    cells = rng.sample([(c, r) for c in range(6) for r in rows], rng.randint(3, 6))
    shapes = []
    for index, (column, row) in enumerate(cells):
        x, y = (
            column * 40 + rng.randint(0, 12),
            row * 40 + rng.randint(0, 12 if len(rows) > 1 else 3),
        )
        width, height = rng.randint(9, 26), rng.randint(9, 26)
        name = "cloud" if index == 0 else "kite"
        shapes.append(Shape(name, rng.choice(list(RGB)), (x, y, x + width, y + height)))
    return shapes


@pytest.mark.parametrize("seed", range(40))
def test_every_mask_is_the_union_of_what_the_phrase_means(seed: int) -> None:
    scene = random_scene(seed)
    kites = [shape for shape in scene if shape.name == "kite"]
    phrases = phrases_of(scene, seeds=3)
    assert {"class"} <= {phrase.kind for phrase in phrases}
    for phrase in phrases:
        shapes = [shape for shape in scene if shape.name == phrase.class_name]
        if phrase.kind == "relation":
            other = scene[0] if phrase.class_name == "kite" else kites[0]
            wanted = meant_relation(phrase.phrase, shapes, other)
        else:
            wanted = meant(phrase.phrase, shapes)
        np.testing.assert_array_equal(decode_rle(phrase.rle), union(wanted), str(phrase.phrase))
        assert phrase.discriminative == (len(wanted) < len(shapes))


def test_the_random_scenes_reach_every_kind() -> None:
    kinds = {
        phrase.kind for seed in range(40) for phrase in phrases_of(random_scene(seed), seeds=1)
    }
    assert kinds == {"class", "colour", "position", "relation", "ordinal", "size", "plural"}


@pytest.mark.parametrize("seed", range(20))
def test_the_swapped_phrase_has_its_own_truth(seed: int) -> None:
    scene = random_scene(seed)
    for phrase in phrases_of(scene, seeds=2):
        assert phrase.swapped == swap_left_right(phrase.phrase)
        if phrase.swapped is None:
            assert phrase.swapped_rle is None
            continue
        if phrase.swapped_rle is None:
            continue
        shapes = [shape for shape in scene if shape.name == phrase.class_name]
        if phrase.kind == "relation":
            kites = [shape for shape in scene if shape.name == "kite"]
            other = scene[0] if phrase.class_name == "kite" else kites[0]
            wanted = meant_relation(phrase.swapped, shapes, other)
        else:
            wanted = meant(phrase.swapped, shapes)
        np.testing.assert_array_equal(decode_rle(phrase.swapped_rle), union(wanted))


ROW = [
    Shape("dog", "red", (5, 40, 35, 80)),
    Shape("dog", "blue", (100, 40, 130, 80)),
    Shape("dog", "red", (200, 40, 235, 80)),
]


def test_a_row_of_three_gives_siblings_with_swaps() -> None:
    phrases = phrases_of(ROW)
    texts = {phrase.phrase for phrase in phrases}
    assert {"the leftmost dog", "the rightmost dog", "all the dogs", "three dogs"} <= texts
    assert {"the second dog from the left", "the blue dog", "the red dogs"} <= texts
    assert len({phrase.group for phrase in phrases}) == 1
    left = next(phrase for phrase in phrases if phrase.phrase == "the leftmost dog")
    assert left.swapped == "the rightmost dog" and left.discriminative
    np.testing.assert_array_equal(decode_rle(left.rle), union(ROW[:1]))
    assert left.swapped_rle is not None
    np.testing.assert_array_equal(decode_rle(left.swapped_rle), union(ROW[2:]))


def test_siblings_share_a_group_and_other_classes_do_not() -> None:
    phrases = phrases_of([*ROW, Shape("cat", "green", (60, 10, 85, 30))])
    groups = {(phrase.class_name, phrase.group) for phrase in phrases}
    assert len(groups) == 2 and len({group for _, group in groups}) == 2


def test_on_the_left_needs_the_left_part_of_the_photo() -> None:
    """Both dogs stand right of the middle: "leftmost" is decided, "on the left" is not."""
    dogs = [Shape("dog", "red", (130, 40, 150, 80)), Shape("dog", "red", (200, 40, 230, 80))]
    texts = " / ".join(phrase.phrase for phrase in phrases_of(dogs, seeds=30))
    assert "leftmost dog" in texts
    assert "on the left" not in texts


@pytest.mark.parametrize(
    ("second", "kind"),
    [
        (Shape("dog", "blue", (8, 80, 38, 118)), "left|right"),  # nearly below
        (Shape("dog", "blue", (120, 10, 150, 55)), "big|small|larg"),  # nearly as large
    ],
)
def test_what_is_too_close_to_call_is_not_said(second: Shape, kind: str) -> None:
    first = Shape("dog", "red", (5, 10, 35, 50))
    for phrase in phrases_of([first, second], seeds=20):
        assert not re.search(kind, phrase.phrase), phrase.phrase


def test_a_borderline_colour_silences_its_colour_only() -> None:
    image, instances = draw(ROW)
    image[40:80, 200:218] = RGB["green"]  # the third dog: half green, half red
    phrases = make_phrases(
        image, instances, DEFAULT_POLICY, image_id="1", limits=EVERYTHING
    ).phrases
    said = {phrase.phrase for phrase in phrases if phrase.kind == "colour"}
    assert not any("red" in text or "green" in text for text in said)
    assert any("blue" in text for text in said)


def test_a_relation_with_a_borderline_thing_is_not_said() -> None:
    reference = Shape("kite", "red", (100, 50, 140, 80))
    beside = Shape("cloud", "white", (10, 50, 40, 80))
    over = Shape("cloud", "white", (95, 5, 125, 30))  # its middle is left of the kite's, barely
    assert any("left of" in p.phrase for p in phrases_of([reference, beside]))
    clouds = [p for p in phrases_of([reference, beside, over]) if p.class_name == "cloud"]
    assert not any("left of" in phrase.phrase for phrase in clouds)


def test_a_relation_needs_one_clear_reference() -> None:
    two = [Shape("kite", "red", (100, 50, 140, 80)), Shape("kite", "red", (180, 50, 220, 80))]
    cloud = Shape("cloud", "white", (10, 50, 40, 80))
    assert not [
        p
        for p in phrases_of([*two, cloud])
        if p.kind == "relation" and "kite" in p.phrase and p.class_name == "cloud"
    ]
    tiny = Shape("kite", "red", (100, 50, 110, 60))  # under half a percent of the photo
    assert not [
        p
        for p in phrases_of([tiny, cloud])
        if "the kite" in p.phrase and "cloud" in p.phrase and p.class_name == "cloud"
    ]


def test_people_on_benches_but_not_on_tables() -> None:
    person = Shape("person", "red", (100, 20, 125, 72))
    carrier = (80, 70, 160, 110)
    bench = phrases_of([person, Shape("bench", "green", carrier)])
    table = phrases_of([person, Shape("dining table", "green", carrier)])
    assert any(re.search(r"person on the bench", phrase.phrase) for phrase in bench)
    assert not any(" on the " in phrase.phrase for phrase in table)


def test_regions_are_neither_counted_nor_ordered() -> None:
    policy = AnnotationPolicy(regions=True)
    kinds = {phrase.kind for phrase in phrases_of(ROW, policy)}
    assert kinds == {"class", "colour"}


def test_stuff_is_named_as_a_whole_and_no_reference() -> None:
    policy = AnnotationPolicy(stuff=frozenset({"dog"}))
    phrases = phrases_of([*ROW[:1], Shape("kite", "green", (150, 40, 190, 80))], policy)
    assert {p.kind for p in phrases if p.class_name == "dog"} == {"class", "colour"}
    assert not any("dog" in p.phrase for p in phrases if p.class_name == "kite")


def test_the_layout_limit_bounds_position_size_and_ordinal_together() -> None:
    phrases = phrases_of(ROW, AnnotationPolicy(layout_limit=2), seeds=1)
    assert sum(phrase.kind in ("position", "size", "ordinal") for phrase in phrases) == 2


def test_limits_by_kind_and_image() -> None:
    image, instances = draw(ROW)
    limits = PhraseLimits(per_image=5, per_kind=(("position", 1), ("ordinal", 9), ("class", 9)))
    made = make_phrases(image, instances, DEFAULT_POLICY, image_id="1", limits=limits).phrases
    assert len(made) == 5
    assert [phrase.kind for phrase in made].count("position") == 1
    assert {phrase.kind for phrase in made} == {"position", "ordinal", "class"}


def test_small_targets_are_dropped_and_counted() -> None:
    """Each dog has 49 pixels, under the 64 of the rule, both together 98."""
    dogs = [Shape("dog", "red", (5, 40, 12, 47)), Shape("dog", "red", (205, 40, 212, 47))]
    image, instances = draw(dogs)
    made = make_phrases(image, instances, DEFAULT_POLICY, image_id="1")
    assert {phrase.kind for phrase in made.phrases} == {"class", "plural"}
    assert made.too_small == {"position": 2}


def test_the_colour_of_a_tiny_thing_is_not_named() -> None:
    tiny, fair = Shape("dog", "red", (5, 40, 13, 50)), Shape("dog", "red", (5, 40, 15, 50))
    assert {phrase.kind for phrase in phrases_of([tiny])} == {"class"}
    assert {phrase.kind for phrase in phrases_of([fair])} == {"class", "colour"}


def test_what_lies_on_a_table_is_not_beside_it() -> None:
    cup, table = Shape("cup", "red", (5, 40, 25, 60)), (60, 40, 160, 100)
    beside = phrases_of([cup, Shape("oven", "green", table)])
    assert any("cup" in p.phrase and "left of" in p.phrase for p in beside)
    phrases = phrases_of([cup, Shape("dining table", "green", table)])
    assert not any(phrase.kind == "relation" for phrase in phrases if phrase.class_name == "cup")


def test_same_seed_same_phrases_and_another_seed_others() -> None:
    image, instances = draw(ROW)

    def texts(image_id: str, seed: int) -> list[str]:
        made = make_phrases(image, instances, DEFAULT_POLICY, image_id=image_id, seed=seed)
        return [phrase.phrase for phrase in made.phrases]

    assert texts("1", 0) == texts("1", 0)
    assert texts("1", 0) != texts("1", 1)
    assert texts("1", 0) != texts("2", 0)


@pytest.mark.parametrize(
    ("category", "singular", "plural"),
    [
        ("person", "person", "people"),
        ("mouse", "mouse", "mice"),
        ("knife", "knife", "knives"),
        ("bus", "bus", "buses"),
        ("wine glass", "wine glass", "wine glasses"),
        ("traffic light", "traffic light", "traffic lights"),
        ("balcony-fence", "balcony fence", "balcony fences"),
        ("sheep", "sheep", "sheep"),
        ("dress", "dress", "dresses"),
        ("jeans", "jeans", "jeans"),
        ("scissors", "scissors", "scissors"),
        ("skis", "skis", "skis"),
        ("couch", "couch", "couches"),
        ("teddy bear", "teddy bear", "teddy bears"),
    ],
)
def test_nouns(category: str, singular: str, plural: str) -> None:
    noun = noun_of(category)
    assert (noun.singular, noun.plural) == (singular, plural)
    assert noun.countable == (category not in ("jeans", "scissors", "skis"))


def test_names_are_cleaned() -> None:
    assert clean_category_name("Balcony-Fence") == "balcony fence"
    assert clean_category_name("t-shirt") == "t-shirt"
    assert clean_category_name("hair_drier") == "hair drier"


def test_nothing_but_left_and_right_is_swapped() -> None:
    assert swap_left_right("the leftmost dog left of the bright light") == (
        "the rightmost dog right of the bright light"
    )
    assert swap_left_right("the bright light") is None


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"),
        ((128, 128, 128), "grey"),
        ((255, 255, 255), "white"),
        ((255, 0, 0), "red"),
        ((255, 165, 0), "orange"),
        ((255, 215, 0), "yellow"),
        ((0, 100, 0), "green"),
        ((0, 0, 128), "blue"),
        ((128, 0, 128), "purple"),
        ((255, 105, 180), "pink"),
        ((139, 69, 19), "brown"),
        ((245, 222, 179), "beige"),
        ((0, 128, 128), None),  # teal: blue to some, green to others
        ((250, 128, 114), None),  # salmon
    ],
)
def test_colour_names(rgb: tuple[int, int, int], name: str | None) -> None:
    image = np.full((4, 4, 3), rgb, dtype=np.uint8)
    shares = colour_shares(name_pixels(image), np.ones((4, 4), dtype=bool))
    assert clear_colour(shares) == name
    assert shares.shape == (len(COLOUR_NAMES),)
