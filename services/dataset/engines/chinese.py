"""Traditional and simplified Chinese: the same text in both scripts has one key, and can be written in one of them."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from opencc import OpenCC

# Where ideographs are: extension A, the unified ones, the compatibility ones, and the planes behind the first.
_RANGES = ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
_IDEOGRAPH = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in _RANGES) + "]")
# All but lone surrogates, which the library does not take.
_TEXT = re.compile("[^\ud800-\udfff]+")
_CODE = np.dtype("<u4")


def fold_script(text: str) -> str:
    """The text with a simplified character for each traditional one, for comparing, not for reading.

    Character by character, so that the answer for a piece of a text does not depend on what stands around it. Several
    traditional characters have the same simplified one: what it tells apart less are single characters, not texts.
    """
    if text.isascii() or _IDEOGRAPH.search(text) is None:
        return text
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), _CODE)
    return _table()[codes].tobytes().decode("utf-32-le", "surrogatepass")


def to_simplified(text: str) -> str:
    """The text in simplified characters. Words that are written otherwise than their characters alone are known."""
    if text.isascii() or _IDEOGRAPH.search(text) is None:
        return text
    return _TEXT.sub(lambda piece: _converter().convert(piece[0]), text)


@lru_cache(maxsize=1)
def _converter() -> OpenCC:
    # Texts without Chinese do not pay for the dictionaries.
    return OpenCC("t2s")


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """(0x110000,) uint32: character to the one that stands for it."""
    table = np.arange(0x110000, dtype=_CODE)
    characters = [chr(code) for first, last in _RANGES for code in range(first, last + 1)]
    # A line each, so that no two of them make a word.
    for character, simplified in zip(characters, _converter().convert("\n".join(characters)).split("\n"), strict=True):
        table[ord(character)] = ord(simplified)
    # Some stand for a character that another one stands for.
    return table[table]
