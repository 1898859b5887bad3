"""What is known about classes by name: which things can be counted, coloured, sat upon.

Names are clean (`phrase_templates.clean_category_name`). They cover COCO's 80 classes, garments
and facades; a class that no list names gets every kind of phrase except "on".
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.replace("\n", ",").split(",") if name.strip())


# Nouns with a plural form that name one thing or one pair: never counted, never "a ...".
PAIRED = _names("skis, scissors, jeans, pants, glasses, sunglasses, goggles")

# Nouns without a plural: never counted.
MASS = _names("skin, hair, vegetation, broccoli, street, grass, sky, water, sand, snow")

# Things whose masked colour is not what people mean by a colour word before their name.
COLOURLESS = _names(
    """person, skin, hair, vegetation, street, facade, fence, balcony fence, shop, window, mirror
    wine glass, orange, zebra, giraffe, pizza, sandwich, hot dog, broccoli, potted plant"""
)

# What carries what. A person leans over a table but is not on it, so tables carry objects only.
SURFACES = _names("dining table, table, desk, counter, shelf")
SEATS = _names("chair, couch, sofa, bed, bench, toilet")
RIDDEN = _names("bicycle, motorcycle, horse, elephant, skateboard, surfboard, snowboard, skis")
RIDERS = _names("person, dog, cat, teddy bear, bird")
SMALL_OBJECTS = _names(
    """bottle, cup, bowl, wine glass, fork, knife, spoon, book, vase, laptop, keyboard, mouse
    remote, cell phone, banana, apple, orange, sandwich, broccoli, carrot, hot dog, pizza, donut
    cake, potted plant, clock, scissors, teddy bear, cat, handbag, backpack, suitcase, tv
    toaster, microwave, plate"""
)

# Higher in the photo means further away for what stands on one floor or table, not above.
STANDING = (
    SMALL_OBJECTS
    | SEATS
    | SURFACES
    | RIDDEN
    | RIDERS
    | _names(
        """car, bus, truck, train, boat, cow, sheep, bear, zebra, giraffe, oven, sink, refrigerator
        fire hydrant, parking meter, sports ball, balcony fence, shop"""
    )
)

SHOES = _names("boots, heels, sneakers, sandals, pumps, flats, loafers, wedges, clogs")
TOPS = _names(
    """blouse, shirt, t-shirt, sweater, sweatshirt, cardigan, jumper, hoodie, vest, bodysuit, bra"""
)
LEGWEAR = _names("stockings, tights, leggings, socks")


def can_be_above(name: str, other: str) -> bool:
    """Whether above and below mean height for the two classes, rather than distance."""
    return not (name in STANDING and other in STANDING)


def is_surface_of(surface: str, thing: str) -> bool:
    """Whether the thing is looked for on such a surface: what lies at its edge is not beside it."""
    return surface in SURFACES and thing in SMALL_OBJECTS


def can_carry(carrier: str, thing: str) -> bool:
    """Whether "the `thing` on the `carrier`" is something that people say."""
    if is_surface_of(carrier, thing):
        return True
    if carrier in SEATS:
        return thing in SMALL_OBJECTS or thing in RIDERS
    return carrier in RIDDEN and thing in RIDERS


# What photos of streets, facades and people who pose there do not show.
INDOORS = _names(
    """bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli
    carrot, hot dog, pizza, donut, cake, couch, bed, dining table, toilet, tv, laptop, mouse, remote
    keyboard, microwave, oven, toaster, sink, refrigerator, scissors, teddy bear, hair drier
    toothbrush, elephant, bear, zebra, giraffe, cow, sheep, airplane, train, skis, snowboard
    baseball glove, baseball bat, tennis racket, surfboard, frisbee, kite"""
)

# Garments that are told apart at a glance, with what is called by another's name now and then: of
# an outfit whose photo names none, nothing is worn.
OUTFITS = (
    _names("hat"),
    _names("scarf, cape"),
    _names("tie"),
    _names("gloves"),
    _names("belt"),
    _names("glasses, sunglasses"),
    _names("bag, purse, wallet"),
    _names("pants, jeans, leggings, shorts, suit, romper, jumper"),
    _names("dress, skirt, romper, jumper, bodysuit, suit"),
    LEGWEAR,
)
