"""CLIP's byte-pair tokenizer as one `tokenizers` file; no torch.

Token for token the tokenizer of OpenAI's CLIP as open_clip ships it (`SimpleTokenizer`). Cleaning
(ftfy, HTML entities, white space, lower case) happens here in Python, with the same functions;
splitting and merging happen in the `tokenizers` library. Three things keep the two equal in odd
corners:

- Letters and numbers are written into the file as explicit code point ranges, because the two
  regular-expression engines follow different versions of Unicode.
- "<start_of_text>" and "<end_of_text>" inside a text become their ids only where CLIP's pattern
  begins a word, which an added token of `tokenizers` cannot express. Merges of lowest priority
  express it: no other word holds "<" and a letter, so they touch nothing else.
- Nothing on the shared tokenizer is changed by a call (its padding and truncation would be), so
  threads may share one.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ftfy
import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models, pre_tokenizers, processors

PADDING_ID = 0
START_ID = 49406
END_ID = 49407

START_OF_TEXT = "<start_of_text>"
END_OF_TEXT = "<end_of_text>"

_WORD_END = "</w>"
_VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
# 49,408 tokens less 256 bytes, the same 256 at a word's end, and the two special tokens.
_MERGE_COUNT = 49_408 - 2 * 256 - 2


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """`tokens` int64 (N, L), 0 = padding; `truncated` bool (N,), True where words were cut off."""

    tokens: NDArray[np.int64]
    truncated: NDArray[np.bool_]


class Tokenizer:
    """Texts to CLIP's token ids. Safe to share between threads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """`backend` must put CLIP's start and end tokens around a text; ValueError if not."""
        if backend.encode("").ids != [START_ID, END_ID]:
            raise ValueError(
                "this is not a CLIP tokenizer: the empty text must give the start and end tokens; "
                "write one with clip_tokenizer().save(path)"
            )
        self._backend = backend

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a file that `save` wrote. Raises ValueError if it is missing or not one."""
        try:
            document = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"cannot read the tokenizer {path}: {error}; export the bundle again"
            ) from error
        try:
            backend = tokenizers.Tokenizer.from_str(document)
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise ValueError(
                f"{path} is not a tokenizer file: {error}; export the bundle again"
            ) from error
        return cls(backend)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as one JSON file; the same tokenizer gives the same bytes."""
        Path(path).write_text(self._backend.to_str(), encoding="utf-8")

    def encode(self, texts: Sequence[str], length: int) -> TokenizedTexts:
        """Tokenize `texts` to rows of `length` ids, start and end tokens included.

        A longer text loses its last words and keeps the end token as its last; `truncated` says
        so. A shorter one is padded with 0. Raises ValueError for a bare string, something that
        is not a string, or a `length` below 2.
        """
        if isinstance(texts, str):
            raise ValueError("pass a sequence of texts, for example [text], not one string")
        if length < 2:
            raise ValueError(f"length must be at least 2 (start and end token), not {length}")
        tokens = np.full((len(texts), length), PADDING_ID, dtype=np.int64)
        truncated = np.zeros(len(texts), dtype=np.bool_)
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"text {row} is {type(text).__name__}; pass strings only")
            # One at a time: encode_batch would start a thread pool, which a fork does not survive.
            ids = self._backend.encode(clean_text(text)).ids
            if len(ids) > length:
                truncated[row] = True
                ids = [*ids[: length - 1], END_ID]
            tokens[row, : len(ids)] = ids
        return TokenizedTexts(tokens, truncated)


def clean_text(text: str) -> str:
    """CLIP's cleaning: mend mis-decoded characters, unescape HTML twice, one space, lower case."""
    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(mended.split()).lower()


@cache
def clip_tokenizer() -> Tokenizer:
    """Build the tokenizer from the vocabulary inside the open_clip package (extra `train`).

    Reads the package's data file and does not import it, so torch stays out. Raises
    ModuleNotFoundError if open_clip is not installed.
    """
    merges = _clip_merges()
    alphabet = list(_byte_characters().values())
    tokens = alphabet + [character + _WORD_END for character in alphabet]
    tokens += [left + right for left, right in merges]
    for special in (START_OF_TEXT, END_OF_TEXT):
        tokens.append(special + _WORD_END)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    for special in (START_OF_TEXT, END_OF_TEXT):
        for left, right in _special_merges(special, vocabulary, merges):
            vocabulary.setdefault(left + right, len(vocabulary))
            merges.append((left, right))

    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=_WORD_END)
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_word_pattern()), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START_OF_TEXT} $A {END_OF_TEXT}",
        special_tokens=[(START_OF_TEXT, START_ID), (END_OF_TEXT, END_ID)],
    )
    return Tokenizer(backend)


def _clip_merges() -> list[tuple[str, str]]:
    """The merges of CLIP's vocabulary file, in order of priority."""
    specification = importlib.util.find_spec("open_clip")  # finds, does not import
    if specification is None or not specification.submodule_search_locations:
        raise ModuleNotFoundError(
            "CLIP's vocabulary comes with open_clip; install it with `pip install open_clip_torch`"
        )
    path = Path(specification.submodule_search_locations[0]) / _VOCABULARY_FILE
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    merges = []
    for line in lines[1 : 1 + _MERGE_COUNT]:  # the first line is a version
        left, right = line.split()
        merges.append((left, right))
    return merges


def _byte_characters() -> dict[int, str]:
    """A printable character for each byte, in the order of CLIP's ids (GPT-2's table)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    visible += range(ord("®"), ord("ÿ") + 1)
    table = {byte: chr(byte) for byte in visible}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(visible))
    return table


def _special_merges(
    special: str, vocabulary: dict[str, int], merges: list[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """Merges that join what `special` is made of, from the left, until it is one token."""
    known = {token: index for token, index in vocabulary.items() if special not in token}
    pieces = tokenizers.Tokenizer(
        models.BPE(vocab=known, merges=merges[:_MERGE_COUNT], end_of_word_suffix=_WORD_END)
    )
    left, *rest = pieces.encode(special).tokens
    for right in rest:
        yield left, right
        left += right


def _word_pattern() -> str:
    """CLIP's word pattern, its character classes spelled out as the `regex` package has them.

    The text is in lower case by now, so of CLIP's ignored case only the long s remains: it has
    no other lower case and matches an s.
    """
    letters, numbers, others = map(_code_point_ranges, (r"[\p{L}]", r"[\p{N}]", r"[^\s\p{L}\p{N}]"))
    return "|".join(
        [
            START_OF_TEXT.replace("s", "[s\u017f]"),
            END_OF_TEXT,
            "'[s\u017f]|'t|'re|'ve|'m|'ll|'d",
            f"[{letters}]+",
            f"[{numbers}]",
            f"[{others}]+",
        ]
    )


def _code_point_ranges(character_class: str) -> str:
    r"""The code points that open_clip's pattern counts to a class, as `\x{..}-\x{..}` ranges.

    Compiled as there, ignoring case: that excludes U+0345 from all three classes.
    """
    import regex  # type: ignore[import-untyped]  # a dependency of open_clip, not of the service

    # Without the surrogates, which no text holds once it is cleaned.
    everything = "".join(map(chr, (*range(0xD800), *range(0xE000, sys.maxunicode + 1))))
    runs = regex.finditer(f"{character_class}+", everything, regex.IGNORECASE)
    return "".join(rf"\x{{{ord(run[0][0]):x}}}-\x{{{ord(run[0][-1]):x}}}" for run in runs)
