"""Conversations of a batch of rows, checked and encoded."""

from __future__ import annotations

from services.training.domain.conversations import ConversationError, Preference, parse_preference
from services.training.engines.encode import Encoded
from services.training.engines.methods.method import Reading, RowBatch
from services.training.engines.pair_turns import encode_pairs
from services.training.engines.turns import bad_row, conversations, encode_turns

# What is told of conversations that do not fit, by name.
SHORTENED, LEFT_OUT = "shortened", "left_out"


def encode(reading: Reading, batch: RowBatch) -> Encoded:
    """Checks every conversation of a batch, and encodes those that are wanted."""
    assert reading.template is not None
    column = reading.phase.messages_column
    every = list(conversations(batch.columns[column], column, batch.what, batch.first))
    found = encode_turns(
        reading.text.tokenizer, reading.template, [every[place] for place in batch.chosen], reading.length
    )
    return Encoded(
        found.kept,
        found.starts,
        {"tokens": found.tokens, "counted": found.counted},
        notes={SHORTENED: found.shortened, LEFT_OUT: found.left_out},
    )


def encode_preferences(reading: Reading, batch: RowBatch) -> Encoded:
    """Checks every preference of a batch, and encodes those that are wanted."""
    assert reading.template is not None
    names = reading.phase.columns
    columns = zip(*(batch.columns[name] for name in names), strict=True)
    every = [_preference(number, texts, names, batch.what) for number, texts in enumerate(columns, batch.first + 1)]
    wanted = [(batch.first + place + 1, every[place]) for place in batch.chosen]
    return encode_pairs(reading.text.tokenizer, reading.template, wanted, reading.length)


def _preference(number: int, texts: tuple[str, ...], names: tuple[str, ...], what: str) -> Preference:
    try:
        return parse_preference(texts, names)
    except ConversationError as error:
        raise bad_row(number, what, error) from None
