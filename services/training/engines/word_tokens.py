"""Tokens word by word: a byte-level BPE never joins what its pattern has cut, so a word that was seen is known."""

from __future__ import annotations

import functools
import json
import re
from array import array
from collections.abc import Sequence
from itertools import chain

from tokenizers import Tokenizer

# The pattern of GPT-2 (Radford et al., 2019), which `ByteLevel` cuts by, as it reads for ASCII.
_WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
# Some 20 MiB; numbers and names would fill the memory.
_MOST_KNOWN = 100_000


def token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of each text, without special tokens: what `encode_batch` gives."""
    return [memoryview(tokens).cast("i").tolist() for tokens in token_bytes(tokenizer, texts)]


def token_bytes(tokenizer: Tokenizer, texts: Sequence[str]) -> list[bytes]:
    """The same as bytes of int32, which are joined without a Python object a token."""
    words = _words(tokenizer)
    return _encoded(tokenizer, texts) if words is None else words.token_bytes(texts)


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[bytes]:
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [array("i", encoding.ids).tobytes() for encoding in encodings]


class Words:
    """The words that a tokenizer has met. Texts that are not ASCII, or have a special token in them, go the long way.

    Args:
        tokenizer: cuts by the pattern above and by nothing else.
        special: texts of its special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, special: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self._known: dict[str, bytes] = {}

    def token_bytes(self, texts: Sequence[str]) -> list[bytes]:
        """See above."""
        plain = [text.isascii() and not self._special.search(text) for text in texts]
        cut = [_WORD.findall(text) if fits else [] for text, fits in zip(texts, plain, strict=True)]
        known = self._learn(set(chain.from_iterable(cut)))
        others = [text for text, fits in zip(texts, plain, strict=True) if not fits]
        rest = iter(_encoded(self._tokenizer, others))
        return [
            b"".join(map(known.__getitem__, words)) if fits else next(rest)
            for words, fits in zip(cut, plain, strict=True)
        ]

    def _learn(self, words: set[str]) -> dict[str, bytes]:
        """The tokens of these words and of others."""
        if len(self._known) > _MOST_KNOWN:
            self._known = {}
        new = sorted(words - self._known.keys())
        self._known.update(zip(new, _encoded(self._tokenizer, new), strict=True))
        return self._known


@functools.lru_cache(maxsize=2)
def _words(tokenizer: Tokenizer) -> Words | None:
    """None for a tokenizer that cuts in another way, or changes texts before."""
    told = json.loads(tokenizer.to_str())
    cut, model = told["pre_tokenizer"] or {}, told["model"]
    plain = (
        told["normalizer"] is None
        and told["truncation"] is None
        and told["padding"] is None
        and cut.get("type") == "ByteLevel"
        and cut.get("use_regex", True)
        and not cut["add_prefix_space"]
        and model["type"] == "BPE"
        and not model.get("dropout")
    )
    return Words(tokenizer, [token["content"] for token in told["added_tokens"]]) if plain else None
