"""Conversations to token arrays: the answers count, what is around them is only read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from tokenizers import Tokenizer

from libs.compute.context import EngineError
from services.training.domain.conversations import Message, without_oldest
from services.training.engines.chat_template import ChatTemplate, TemplateError
from services.training.engines.encode import Array, joined, starts_of


@dataclass(frozen=True)
class EncodedTurns:
    """Conversations, one after the other.

    Attributes:
        tokens: all tokens, int32[total].
        starts: where each conversation begins and the last one ends, int64[n + 1].
        counted: which tokens are to be learned, bool[total]; never the first of a conversation.
        kept: which of the given conversations they are, rising, int64[n].
        shortened: conversations that did not fit and lost their oldest turns.
        left_out: conversations of which nothing that counts would have been left.
    """

    tokens: Array
    starts: Array
    counted: Array
    kept: Array
    shortened: int = 0
    left_out: int = 0


def encode_turns(
    tokenizer: Tokenizer, template: ChatTemplate, rows: Sequence[tuple[int, list[Message]]], limit: int
) -> EncodedTurns:
    """Conversations by the chat template. One that is too long loses its oldest turns; the last one, its beginning.

    Args:
        rows: number of each row, for errors, and its messages.
        limit: tokens of a conversation at most.

    Raises:
        EngineError: CONTENT_INVALID, the template refuses a conversation.
    """
    tokens: list[list[int]] = []
    counted: list[list[bool]] = []
    kept: list[int] = []
    shortened = left_out = 0
    for place, (number, messages) in enumerate(rows):
        try:
            encoded, cut = _fitting(tokenizer, template, messages, limit)
        except TemplateError as error:
            raise not_rendered(number, error) from None
        shortened += cut
        flags = [counts for _, counts in encoded]
        if any(flags):
            tokens.append([token for token, _ in encoded])
            counted.append(flags)
            kept.append(place)
        else:
            left_out += 1
    starts = starts_of([len(row) for row in tokens])
    flat = np.fromiter(chain.from_iterable(counted), dtype=np.bool_, count=int(starts[-1]))
    places = np.asarray(kept, dtype=np.int64)
    return EncodedTurns(joined(tokens, starts), starts, flat, places, shortened, left_out)


def _fitting(
    tokenizer: Tokenizer, template: ChatTemplate, messages: list[Message], limit: int
) -> tuple[list[tuple[int, bool]], bool]:
    """The tokens of a conversation with their flags, and whether turns had to go."""
    cut = False
    while True:
        encoded = list(_encoded(tokenizer, template, messages))
        shorter = without_oldest(messages) if len(encoded) > limit else None
        if shorter is None:
            break
        messages, cut = shorter, True
    # Nothing stands before the first token that could tell it.
    kept = encoded[-limit:]
    return [(kept[0][0], False), *kept[1:]], cut or len(encoded) > limit


def _encoded(tokenizer: Tokenizer, template: ChatTemplate, messages: list[Message]) -> Iterator[tuple[int, bool]]:
    segments = template.segments(messages)
    # Prompt and answer are encoded apart, as a server does it: the answer comes token by token behind the prompt.
    encodings = tokenizer.encode_batch([text for text, _ in segments], add_special_tokens=False)
    for encoding, (_, counts) in zip(encodings, segments, strict=True):
        for token in encoding.ids:
            yield token, counts


def not_rendered(number: int, error: TemplateError) -> EngineError:
    """CONTENT_INVALID that names the row, counted from 1."""
    message = f"The chat template does not take row {number}: {error}."
    return EngineError("CONTENT_INVALID", message, detail=f"row {number}")
