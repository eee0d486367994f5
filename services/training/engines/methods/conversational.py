"""Conversations of a batch of rows, checked and encoded."""

from __future__ import annotations

from collections.abc import Iterator

from libs.compute.context import EngineError
from services.training.domain.conversations import (
    ConversationError,
    Message,
    Preference,
    parse_conversation,
    parse_preference,
)
from services.training.domain.spec import Phase
from services.training.engines.chat_template import ChatTemplate, TemplateError
from services.training.engines.encode import Encoded
from services.training.engines.methods.method import Reading, RowBatch
from services.training.engines.pair_turns import encode_pairs
from services.training.engines.turns import encode_turns, not_rendered

# What is told of conversations that do not fit, by name.
SHORTENED, LEFT_OUT = "shortened", "left_out"


def plain_texts(template: ChatTemplate, phase: Phase, batch: RowBatch) -> Iterator[str]:
    """The conversations of a batch as a tokenizer is to learn them: with their roles, without special tokens; of a pair
    the better answer.

    Raises:
        EngineError: CONTENT_INVALID, naming the row.
    """
    if phase.compares:
        rows = [(number, [*pair.prompt, *pair.chosen]) for number, pair in _preferences(phase, batch)]
    else:
        rows = _conversations(phase, batch)
    for number, messages in rows:
        try:
            yield template.render(messages, bare=True)
        except TemplateError as error:
            raise not_rendered(number, error) from None


def encode(reading: Reading, batch: RowBatch) -> Encoded:
    """Checks every conversation of a batch, and encodes those that are wanted."""
    assert reading.template is not None
    every = _conversations(reading.phase, batch)
    wanted = [every[place] for place in batch.chosen]
    found = encode_turns(reading.text.tokenizer, reading.template, wanted, reading.length)
    return Encoded(
        found.kept,
        found.starts,
        {"tokens": found.tokens, "counted": found.counted},
        notes={SHORTENED: found.shortened, LEFT_OUT: found.left_out},
    )


def encode_preferences(reading: Reading, batch: RowBatch) -> Encoded:
    """Checks every preference of a batch, and encodes those that are wanted."""
    assert reading.template is not None
    every = _preferences(reading.phase, batch)
    wanted = [every[place] for place in batch.chosen]
    return encode_pairs(reading.text.tokenizer, reading.template, wanted, reading.length)


def _conversations(phase: Phase, batch: RowBatch) -> list[tuple[int, list[Message]]]:
    """All conversations of a batch with the numbers of their rows: a bad one is told whether or not it is wanted."""
    column = phase.messages_column
    found: list[tuple[int, list[Message]]] = []
    for number, text in enumerate(batch.columns[column], batch.first + 1):
        try:
            found.append((number, parse_conversation(text, column)))
        except ConversationError as error:
            raise _bad_row(number, batch, error) from None
    return found


def _preferences(phase: Phase, batch: RowBatch) -> list[tuple[int, Preference]]:
    """The same of preferences."""
    names = phase.columns
    found: list[tuple[int, Preference]] = []
    for number, texts in enumerate(zip(*(batch.columns[name] for name in names), strict=True), batch.first + 1):
        try:
            found.append((number, parse_preference(texts, names)))
        except ConversationError as error:
            raise _bad_row(number, batch, error) from None
    return found


def _bad_row(number: int, batch: RowBatch, error: ConversationError) -> EngineError:
    return EngineError("CONTENT_INVALID", f"Row {number} of the {batch.what}: {error}.", detail=f"row {number}")
