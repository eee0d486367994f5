"""Tokens word by word: a byte-level BPE never joins what its pattern has cut, so a word that was seen is known."""

from __future__ import annotations

import functools
import json
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

# The pattern of GPT-2 (Radford et al., 2019), which `ByteLevel` cuts by, as it reads for ASCII, for expressions that do
# not look ahead: of white space before a word the last one is cut off first, as it may belong to the word.
_CUT, _SPACE = "\x00", r" \t\n\r\f\x0b"
_BEFORE_LAST_SPACE = f"([{_SPACE}]+)([{_SPACE}][^{_SPACE}])"
_WORD = rf"('s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^{_SPACE}\x00A-Za-z0-9]+|[{_SPACE}]+)"
# Some 50 MiB; numbers and names would fill the memory.
_MOST_KNOWN = 250_000
# Texts that are worth a thread.
_FEW = 64


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
        self._odd = re.compile("|".join(map(re.escape, [_CUT, *special])))
        self._known: dict[str, bytes] = {"": b""}

    def token_bytes(self, texts: Sequence[str]) -> list[bytes]:
        """See above."""
        plain = [text.isascii() and not self._odd.search(text) for text in texts]
        short = self._by_word([text for text, fits in zip(texts, plain, strict=True) if fits])
        others = [text for text, fits in zip(texts, plain, strict=True) if not fits]
        long = iter(_encoded(self._tokenizer, others))
        return [next(short) if fits else next(long) for fits in plain]

    def _by_word(self, texts: list[str]) -> Iterator[bytes]:
        """The tokens of each text. Cutting, most of the work, is Arrow's and leaves the interpreter to others."""
        size = max(_FEW, -(-len(texts) // _cores()))
        for words, ends in _threads().map(_cut, [texts[at : at + size] for at in range(0, len(texts), size)]):
            tokens = self._known_tokens(words.dictionary.to_pylist()).take(words.indices)
            data = memoryview(tokens.buffers()[2] or b"")
            places = np.frombuffer(tokens.buffers()[1], np.int32)[ends].tolist()
            yield from (data[start:end].tobytes() for start, end in pairwise(places))

    def _known_tokens(self, words: list[str]) -> pa.Array:
        if len(self._known) > _MOST_KNOWN:
            self._known = {"": b""}
        new = [word for word in words if word not in self._known]
        self._known.update(zip(new, _encoded(self._tokenizer, new), strict=True))
        return pa.array([self._known[word] for word in words], pa.binary())


def _cut(texts: list[str]) -> tuple[pa.DictionaryArray, np.ndarray]:
    """The words of texts one after the other, empty ones among them, and where each text begins and the last ends."""
    cut = pc.call_function("replace_substring_regex", [pa.array(texts)], _replaced(_BEFORE_LAST_SPACE, rf"\1{_CUT}\2"))
    cut = pc.call_function("replace_substring_regex", [cut], _replaced(_WORD, rf"\1{_CUT}"))
    words = pc.call_function("split_pattern", [cut], pc.SplitPatternOptions(_CUT))
    return words.flatten().dictionary_encode(), words.offsets.to_numpy()


def _replaced(pattern: str, replacement: str) -> pc.ReplaceSubstringOptions:
    return pc.ReplaceSubstringOptions(pattern, replacement)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_cores(), thread_name_prefix="words")


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
