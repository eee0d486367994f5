"""Operators that change a text at random."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# A character of East Asian scripts is a word, as everywhere here; white space stays as it is.
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+|\s+")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# Where the keys that touch a key lie, in rows down and keys to the right: each row is shifted by half a key.
_TOUCHING = ((0, -1), (0, 1), (-1, 0), (-1, 1), (1, -1), (1, 0))
_NEIGHBOURS = {
    key: "".join(
        _ROWS[row + down][at + right]
        for down, right in _TOUCHING
        if 0 <= row + down < len(_ROWS) and 0 <= at + right < len(_ROWS[row + down])
    )
    for row, keys in enumerate(_ROWS)
    for at, key in enumerate(keys)
}

Parameters = Mapping[str, Any]
Random = np.random.Generator


def _insert(tokens: list[str], parameters: Parameters, random: Random) -> list[str]:
    words = _words(tokens)
    chosen = _some(words, parameters["share"], random)
    for copied in [tokens[at] for at in chosen]:
        place = int(random.choice(_words(tokens)))
        tokens[place:place] = [copied] if _alone(copied) else [copied, " "]
    return tokens


def _swap(tokens: list[str], parameters: Parameters, random: Random) -> list[str]:
    words = _words(tokens)
    if len(words) < 2:
        return tokens
    for first in _some(list(range(len(words) - 1)), parameters["share"], random):
        one, other = words[first], words[first + 1]
        tokens[one], tokens[other] = tokens[other], tokens[one]
    return tokens


def _delete(tokens: list[str], parameters: Parameters, random: Random) -> list[str]:
    words = _words(tokens)
    gone = set(_some(words, parameters["share"], random)[: len(words) - 1])
    kept: list[str] = []
    for at, token in enumerate(tokens):
        # With a word goes the space behind it, where another stands before it.
        follows = at - 1 in gone and token.isspace() and (not kept or kept[-1].isspace())
        if at not in gone and not follows:
            kept.append(token)
    return kept


def _misspell(tokens: list[str], parameters: Parameters, random: Random) -> list[str]:
    able = [at for at in _words(tokens) if any(letter in _NEIGHBOURS for letter in tokens[at].lower())]
    for at in _some(able, parameters["share"], random):
        word = tokens[at]
        place = int(random.choice([at for at, letter in enumerate(word) if letter.lower() in _NEIGHBOURS]))
        typed = str(random.choice(list(_NEIGHBOURS[word[place].lower()])))
        tokens[at] = word[:place] + (typed.upper() if word[place].isupper() else typed) + word[place + 1 :]
    return tokens


def _synonyms(tokens: list[str], parameters: Parameters, random: Random) -> list[str]:
    groups = _groups(parameters["groups"])
    able = [at for at in _words(tokens) if _bare(tokens[at]).lower() in groups]
    for at in _some(able, parameters["share"], random):
        bare = _bare(tokens[at])
        others = [word for word in groups[bare.lower()] if word.lower() != bare.lower()]
        if others:
            chosen = str(random.choice(others))
            chosen = chosen[:1].upper() + chosen[1:] if bare[:1].isupper() else chosen
            tokens[at] = tokens[at].replace(bare, chosen, 1)
    return tokens


def _groups(texts: list[str]) -> dict[str, list[str]]:
    """Each word, in small letters, and the words of its first group."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        words = [word.strip() for word in text.replace("\uff0c", ",").split(",") if word.strip()]
        for word in words:
            groups.setdefault(word.lower(), words)
    return groups


def _bare(token: str) -> str:
    """A word without the punctuation around it."""
    return re.sub(r"^\W+|\W+$", "", token)


def _words(tokens: list[str]) -> list[int]:
    return [at for at, token in enumerate(tokens) if not token.isspace()]


def _alone(token: str) -> bool:
    """Whether a word stands without spaces around it."""
    return len(token) == 1 and ord(token) >= 0x3040


def _some(items: list[int], share: float, random: Random) -> list[int]:
    """So many of the items, at least one unless the share is 0."""
    count = min(len(items), max(1, round(share * len(items)))) if share else 0
    return sorted(random.choice(items, count, replace=False).tolist()) if count else []


_OPERATIONS: dict[str, Callable[[list[str], Parameters, Random], list[str]]] = {
    "insert_words": _insert,
    "swap_words": _swap,
    "delete_words": _delete,
    "misspell": _misspell,
    "synonyms": _synonyms,
}
TEXT_OPERATORS = tuple(_OPERATIONS)


def augment_text(text: str, operator: str, parameters: Parameters, random: Random) -> str:
    """The text as an operator changes it.

    Args:
        operator: One of `TEXT_OPERATORS`.
        parameters: All of them, as `services.dataset.domain.augmentation` describes.
        random: A stream of its own for each text and operator.
    """
    tokens = _TOKEN.findall(text)
    return "".join(_OPERATIONS[operator](tokens, parameters, random)) if _words(tokens) else text
