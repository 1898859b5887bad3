"""The tokenizer file against open_clip's own tokenizer, and the promises of its class."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import END_ID, PADDING_ID, START_ID, Tokenizer, clip_tokenizer

LONG = 4096


@pytest.fixture(scope="module")
def reference() -> Any:
    """open_clip's tokenizer: the truth here.

    Its file alone, because the whole package brings timm and torchvision, which is slow.
    """
    package = importlib.util.find_spec("open_clip")
    assert package is not None and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    specification = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.SimpleTokenizer()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    clip_tokenizer().save(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(saved: Path) -> Tokenizer:
    """Read back from its file, because that is what the service does."""
    return Tokenizer.from_file(saved)


def assert_equal_ids(tokenizer: Tokenizer, reference: Any, texts: list[str]) -> None:
    expected = [reference.encode(text) for text in texts]
    length = max(map(len, expected), default=0) + 2
    encoded = tokenizer.encode(texts, length)
    assert not encoded.truncated.any()
    for text, ids, row in zip(texts, expected, encoded.tokens.tolist(), strict=True):
        padding = [PADDING_ID] * (length - 2 - len(ids))
        assert row == [START_ID, *ids, END_ID, *padding], ascii(text)


# -- equal to open_clip -------------------------------------------------------------------------

COLOURS = ["", "red", "Dark-Blue", "black and white", "grey/green", "light brown"]
NOUNS = [
    "dog", "dogs", "woman's handbag", "T-shirt", "traffic light", "giraffe", "skateboarder",
    "No. 42 bus", "café sign", "bike", "hot-dog", "3rd person", "tennis racket", "zebra crossing",
]  # fmt: skip
PLACES = [
    "", "on the left", "at the very bottom", "second from right", "next to the 2 cars",
    "that isn't moving", "behind the man who's wearing a hat", "(far away)", "in front of \"STOP\"",
    "with 100% of it visible", "we've seen, they'll use, I'd like, you're at, I'm on",
]  # fmt: skip


def test_captions(tokenizer: Tokenizer, reference: Any) -> None:
    captions = [
        form.format(f"{colour} {noun} {place}")
        for form in ("the {}", "{}.", "A photo of the {}!")
        for colour, noun, place in itertools.product(COLOURS, NOUNS, PLACES)
    ]
    assert len(captions) > 2500
    assert_equal_ids(tokenizer, reference, captions)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029",
        "  two\t\tspaces \n and\u00a0no\u202fbreak\u3000wide\u2003em  ",
        "zero\u200bwidth\u200djoin\ufeffmark\u00adhyphen\u2060word",
        "the dog's bone, the dog\u2019s bone, the dog`s bone, the dog\u02bcs bone",
        "IT'S WE'RE I'VE THEY'LL I'D I'M DON'T 'S '' 'x ''s 'sss",
        "'\u017f long s, \u017ftart, <\u017ftart_of_text>",  # CLIP ignores case: the long s is an s
        "&lt;b&gt; &amp;amp; &amp;lt; &#39;s &#x1F600; &nbsp;&hearts; &notanentity; &amp",
        "&amp;amp;amp; &#0; &#xD800; &#x110000; &#128;",
        "<start_of_text>",
        "<end_of_text>",
        "a <START_OF_TEXT> b<End_Of_Text>c <end_of_text>",
        "!<end_of_text> <<end_of_text> <end_of_text><end_of_text> 1<end_of_text>'s<start_of_text>",
        "<end_of_text <endof_text> end_of_text> <end_of_text>! <|endoftext|> </w> <pad> [MASK]",
        "1234567890 3.14 1,000 50% 2nd 1/2 \u00bd \u00b2 \u2168",
        "\u0663\u0664 \u4e09 \u2460 1\ufe0f\u20e3",
        "caf\u00e9 cafe\u0301 na\u00efve \u00c5ngstr\u00f6m \u212b \u1e9e STRASSE stra\u00dfe",
        "\u0130stanbul I\u0307 \u0131 \u01c5 \ufb01ne \ufb03",
        "\uff26\uff35\uff2c\uff2c \u039f\u0394\u039f\u03a3",
        "z\u0351\u032b\u0343a\u0345l\u0349\u035ag\u0322\u0321o \u0345 \u0345\u0345a'\u0345",
        "\u72d7\u5728\u5de6\u8fb9 \u732b\u306f\u3069\u3053 \uac1c \u1100\u1161",
        "\u0e01\u0e33 \u0915\u094d\u0937\u093f \u0627\u0644\u0643\u0644\u0628",
        "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f \u263a",
        "mojibake: caf\u00c3\u00a9 \u00e2\u20ac\u0153quoted\u00e2\u20ac\u009d",
        "l\u00e2\u20ac\u2122humanit\u00c3\u00a9",
        "nul\x00 bell\x07 escape\x1b[31mred\x1b[0m del\x7f c1\x80\x9f",
        "\ud83d\ude00 \ud800 \udc00x",  # a surrogate pair, and halves of one
        "\ufffe\uffff\U0010ffff\ue000\U000e0001\ufdd0",
        "\u202eright to left\u202c \u2066isolate\u2069",
        "snake_case kebab-case CamelCase http://a.b/c?d=e&f=g a@b.c",
        "#tag $5 C++ C# \\n {x} [y] (z) ~^`|",
    ],
)  # fmt: skip
def test_odd_texts(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    assert_equal_ids(tokenizer, reference, [text])


@given(texts=st.lists(st.text(max_size=40), max_size=8))
def test_any_unicode(tokenizer: Tokenizer, reference: Any, texts: list[str]) -> None:
    assert_equal_ids(tokenizer, reference, texts)


PIECES = [
    "<start_of_text>", "<end_of_text>", "<END_OF_TEXT>", "<\u017ftart_of_text>", "<end_of_text",
    "'s", "'S", "\u2019s", "'\u017f", "'ll", "'LL", "'", "&amp;", "&amp;amp;", "&#39;", "&lt;",
    "&nbsp;", "<b>", "<", ">", "_", " ", "  ", "\t", "\n", "\x1c", "\x85", "\u3000", "\u200b",
    "!", "!!", "?!", "...", "-", "a", "the", "Dog", "DOGS", "12", "3rd", "\u00e9", "e\u0301",
    "\u00df", "\u0130", "I\u0307", "\u03c2", "\u03a3", "\u65e5\u672c", "\u732b", "\U0001f469\u200d",
    "\U0001f1e9", "\x00", "\x07", "\x1b[31m", "\ufb01", "\u0345", "\u2169", "\u00bd", "\u00b2",
    "\u0663", "\ud800", "\udc00", "\u00e2\u20ac\u2122", "\u00c3\u00a9", "\u2028", "\u0e33",
]  # fmt: skip


def test_thousands_of_mixtures(tokenizer: Tokenizer, reference: Any) -> None:
    rng = random.Random(20)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(1, 9))) for _ in range(5000)]
    assert_equal_ids(tokenizer, reference, texts)


@pytest.mark.parametrize(
    "code_points",
    [
        pytest.param(range(0x0, 0x3400), id="below CJK"),
        pytest.param([*range(0xA000, 0xAC00), *range(0xD700, 0xD800)], id="above CJK"),
        pytest.param(range(0xF800, 0x10000), id="end of the basic plane"),
        pytest.param(range(0x10000, 0x13000), id="old scripts"),
        pytest.param(range(0x1BC00, 0x20000), id="symbols"),
        pytest.param(
            range(0x0, sys.maxunicode + 1),
            id="all",
            marks=[pytest.mark.slow, pytest.mark.timeout(1800)],
        ),
    ],
)
def test_every_character_is_of_the_same_class(
    tokenizer: Tokenizer, reference: Any, code_points: Any
) -> None:
    """Two versions of Unicode in two regular-expression engines would show here."""
    characters = [chr(code) for code in code_points if not 0xD800 <= code < 0xE000]
    texts = [
        " ".join(f"x{character}'{character}" for character in characters[start : start + 32])
        for start in range(0, len(characters), 32)
    ]
    assert_equal_ids(tokenizer, reference, texts)


@pytest.mark.parametrize(
    "text", ["a" * 3000, "Dog " * 2000, "\u732b" * 800, "!?" * 1500, "7" * 999]
)
def test_very_long_texts(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    assert_equal_ids(tokenizer, reference, [text])


def test_rows_equal_open_clips_rows_when_truncated(tokenizer: Tokenizer, reference: Any) -> None:
    texts = [
        "",
        "dog",
        "the dog on the left",
        "word " * 15,
        "word " * 16,
        "word " * 90,
        "\u732b" * 9,
    ]
    for length in (2, 3, 17, 22, 77):
        encoded = tokenizer.encode(texts, length)
        np.testing.assert_array_equal(encoded.tokens, reference(texts, length).numpy())
        too_long = [len(reference.encode(text)) + 2 > length for text in texts]
        assert encoded.truncated.tolist() == too_long


# -- the class ----------------------------------------------------------------------------------


def test_an_exact_fit_is_not_truncated(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(["dog " * 15, "dog " * 16], 17)
    assert encoded.truncated.tolist() == [False, True]
    np.testing.assert_array_equal(encoded.tokens[0], encoded.tokens[1])
    assert encoded.tokens[1, -1] == END_ID


def test_shapes_and_types(tokenizer: Tokenizer) -> None:
    for texts in ([], ["one"], ("one", "two words")):
        encoded = tokenizer.encode(texts, 9)
        assert encoded.tokens.shape == (len(texts), 9)
        assert encoded.tokens.dtype == np.int64
        assert encoded.truncated.shape == (len(texts),)
        assert encoded.truncated.dtype == np.bool_


@given(text=st.lists(st.sampled_from(PIECES)).map("".join), length=st.integers(2, 40))
def test_a_row_is_start_words_end_padding(tokenizer: Tokenizer, text: str, length: int) -> None:
    """Every id has a row in CLIP's embedding: none of the helper tokens ever comes out."""
    row = tokenizer.encode([text], length).tokens[0]
    assert row[0] == START_ID
    assert ((row >= 0) & (row <= END_ID)).all()
    whole = tokenizer.encode([text], LONG)
    assert not whole.truncated[0]
    count = int(np.flatnonzero(whole.tokens[0] == END_ID)[-1]) + 1
    kept = min(count, length)
    assert row[kept - 1] == END_ID
    assert (row[kept:] == PADDING_ID).all()
    np.testing.assert_array_equal(row[: kept - 1], whole.tokens[0, : kept - 1])


def test_the_file_round_trips(saved: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == saved.read_bytes()


def test_threads_may_share_it(tokenizer: Tokenizer) -> None:
    rng = random.Random(4)
    jobs = [
        (["".join(rng.choices(PIECES, k=6)) for _ in range(20)], rng.randint(2, 30))
        for _ in range(200)
    ]
    expected = [tokenizer.encode(texts, length) for texts, length in jobs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: tokenizer.encode(*job), jobs))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.truncated, other.truncated)


def test_building_and_using_it_needs_no_torch(repo_root: Path) -> None:
    program = (
        "import sys; from model.tokenizer import clip_tokenizer;"
        "clip_tokenizer().encode(['the dog'], 17); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repo_root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}', "\u00e9"])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match="export the bundle again"):
        Tokenizer.from_file(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read the tokenizer"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_tokenizer_without_start_and_end_is_refused(saved: Path, tmp_path: Path) -> None:
    document = json.loads(saved.read_text(encoding="utf-8"))
    document["post_processor"] = None
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match="not a CLIP tokenizer"):
        Tokenizer.from_file(path)


def test_wrong_calls_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="not one string"):
        tokenizer.encode("the dog", 17)
    with pytest.raises(ValueError, match="at least 2"):
        tokenizer.encode(["the dog"], 1)
    wrong: Any = ["the dog", None]
    with pytest.raises(ValueError, match="text 1 is NoneType"):
        tokenizer.encode(wrong, 17)
