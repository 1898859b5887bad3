"""Words that a crop can make untrue, or leave without what they speak of.

A crop moves the middle of the photo, takes things away and makes the rest larger. So a phrase that
says where its target is, which of several it is, how many they are, how large it is, or what it
stands in a relation to, is kept away from crops; a name ("dog") or a quality ("black dog",
"sleeping dog") is not. In doubt a word is listed: a crop less costs a little variety, a false
phrase teaches a falsehood. Hence "in" is here although "man in red" would survive, and "and"
although "black and white cat" would.
"""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PLACES = _words(
    """left right leftmost rightmost lefthand righthand lefty righty top topmost bottom bottommost
    upper uppermost lower lowermost lowest highest middle middlemost mid midway center centre
    centered centred central centermost corner corners edge edges side sides end ends tip front
    frontmost back backmost rear background foreground distance horizon here there near nearer
    nearest nearby close closer closest far farther farthest further furthest furthermost away
    ahead behind beyond above below over under underneath beneath atop inside outside inner
    innermost outer outermost within between among amongst amid around round along alongside across
    through throughout against toward towards forward forwards backward backwards up down upward
    downward upwards downwards off on onto upon in into out by at beside besides next adjacent
    opposite alone north south east west northern southern eastern western diagonal diagonally
    clock clockwise row rows column columns line lines aisle frame picture photo photograph pic
    image screen shot view camera viewer us"""
)
_PARTS = _words(
    """part parts partial partially partly half halves quarter whole entire entirely full fully
    complete completely portion section piece pieces cut cropped cropping hidden visible unseen
    blocked obscured occluded showing shown shows seen see just only barely"""
)
_ORDERS = _words(
    """first second third fourth fifth sixth seventh eighth ninth tenth last next previous
    following one two three four five six seven eight nine ten eleven twelve zero no none single
    double triple both either neither all every each any some several many few fewer multiple
    various couple pair pairs group groups bunch cluster crowd stack pile trio other others another
    else same different similar matching remaining rest most more less least main and or but not
    except without"""
)
_SIZES = _words(
    """big bigger biggest large larger largest small smaller smallest little littler littlest tiny
    tinier tiniest huge giant gigantic enormous massive medium mini miniature tall taller tallest
    short shorter shortest long longer longest high higher low wide wider widest broad narrow
    narrower narrowest thick thicker thickest thin thinner thinnest fat fatter fattest skinnier
    skinniest deep deeper older oldest elder eldest younger youngest darker darkest lighter lightest
    brighter brightest whiter whitest redder blacker greener bluer fuller fullest best better worst
    newer newest heavier heaviest"""
)
_RELATIONS = _words(
    """of with to from for about like as than via per whose where which that's has have had having
    wear wears wearing wore worn dressed carry carries carrying carried hold holds holding held
    grab grabs grabbing grip gripping use uses using ride rides riding ridden drive drives driving
    pull pulls pulling push pushes pushing touch touches touching cover covers covering covered
    surround surrounds surrounding surrounded hang hangs hanging attach attached attaching mounted
    connect connected connecting tied lean leans leaning support supports supporting supported
    contain contains containing filled fill fills filling made eat eats eating drink drinks drinking
    play plays playing watch watches watching look looks looking stare stares staring face faces
    facing point points pointing reach reaches reaching read reads reading throw throws throwing
    catch catches catching hit hits hitting kick kicks kicking swing swings swinging feed feeds
    feeding pet pets petting hug hugs hugging kiss kisses kissing help helps helping serve serves
    serving cross crosses crossing follow follows chase chases chasing pass passes passing enter
    enters entering make makes making cook cooks cooking wash washes washing fly flies flying walk
    walks walking cut cutting pour pours pouring lift lifts lifting open opens opening drag drags
    dragging tow tows towing lead leads leading sniff sniffs sniffing lick licks licking bite bites
    biting smell smells smelling chew chews chewing brush brushes brushing belong belongs belonging
overlap overlaps overlapping block blocks blocking shade shades
    shading reflect reflects reflecting overlooking talk talks talking"""
)

CROP_WORDS = _PLACES | _PARTS | _ORDERS | _SIZES | _RELATIONS

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+\w*")


def speaks_of_more(phrase: str) -> bool:
    """Whether a phrase names a place, an order, a number, a size or a relation."""
    return any(word in CROP_WORDS or word[0].isdigit() for word in _WORD.findall(phrase.lower()))
