"""Conversations to token arrays: the answers count, what is around them is only read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from libs.compute.context import EngineContext, EngineError
from services.training.domain.conversations import ConversationError, Message, parse_conversation, without_oldest
from services.training.domain.spec import TrainingSpec
from services.training.engines.chat_template import ChatTemplate, TemplateError
from services.training.engines.encode import Array
from services.training.engines.heldout import ANSWER_ROWS

Arrays = dict[str, Array]


@dataclass(frozen=True)
class EncodedTurns:
    """Conversations, one after the other.

    Attributes:
        tokens: all tokens, int32[total].
        starts: where each conversation begins and the last one ends, int64[n + 1].
        counted: which tokens are to be learned, bool[total]; never the first of a conversation.
        shortened: conversations that did not fit and lost their oldest turns.
        left_out: conversations of which nothing that counts would have been left.
    """

    tokens: Array
    starts: Array
    counted: Array
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
    shortened = left_out = 0
    for number, messages in rows:
        try:
            encoded, cut = _fitting(tokenizer, template, messages, limit)
        except TemplateError as error:
            raise _not_rendered(number, error) from None
        shortened += cut
        flags = [counts for _, counts in encoded]
        if any(flags):
            tokens.append([token for token, _ in encoded])
            counted.append(flags)
        else:
            left_out += 1
    starts = np.concatenate([[0], np.cumsum([len(row) for row in tokens])]).astype(np.int64)
    total = int(starts[-1])
    return EncodedTurns(
        np.fromiter((token for row in tokens for token in row), dtype=np.int32, count=total),
        starts,
        np.fromiter((flag for row in counted for flag in row), dtype=np.bool_, count=total),
        shortened,
        left_out,
    )


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


def conversations(texts: Sequence[str], column: str, what: str) -> Iterator[tuple[int, list[Message]]]:
    """The conversations of a column with the numbers of their rows, counted from 1.

    Args:
        what: version that the column is of, for errors.

    Raises:
        EngineError: CONTENT_INVALID, naming row and field.
    """
    for number, text in enumerate(texts, 1):
        try:
            yield number, parse_conversation(text, column)
        except ConversationError as error:
            message = f"Row {number} of the {what}: {error}."
            raise EngineError("CONTENT_INVALID", message, detail=f"row {number}") from None


def plain_texts(template: ChatTemplate, texts: Sequence[str], column: str) -> list[str]:
    """The conversations of a column as a tokenizer is to learn them: with their roles, without special tokens.

    Raises:
        EngineError: CONTENT_INVALID, naming the row.
    """
    found: list[str] = []
    for number, messages in conversations(texts, column, "dataset version"):
        try:
            found.append(template.render(messages, bare=True))
        except TemplateError as error:
            raise _not_rendered(number, error) from None
    return found


def _not_rendered(number: int, error: TemplateError) -> EngineError:
    message = f"The chat template does not take row {number}: {error}."
    return EngineError("CONTENT_INVALID", message, detail=f"row {number}")


def encode_conversations(
    ctx: EngineContext,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    texts: Sequence[str],
    spec: TrainingSpec,
    number: int,
    *,
    heldout: bool = False,
) -> Arrays | None:
    """Checks every conversation of a column, and encodes as many as the phase will read, at random.

    Args:
        texts: the column.
        number: of the phase.
        heldout: a fixed small number of rows instead.

    Returns:
        Arrays by name; None when no conversation fits.
    """
    phase, what = spec.phases[number], "validation version" if heldout else "dataset version"
    order = np.random.default_rng([spec.seed & 0xFFFFFFFFFFFFFFFF, number, int(heldout)]).permutation(len(texts))
    places = {
        row: place for place, row in enumerate(order[: ANSWER_ROWS if heldout else phase.steps * phase.batch_size])
    }
    chosen = [
        (row, messages) for row, messages in conversations(texts, phase.messages_column, what) if row - 1 in places
    ]
    chosen.sort(key=lambda row: places[row[0] - 1])
    found = encode_turns(tokenizer, template, chosen, spec.architecture.sequence_length)
    if found.shortened:
        ctx.log(
            f"{found.shortened} of {len(chosen)} conversations of the {what} are longer than "
            f"{spec.architecture.sequence_length} tokens; their oldest turns were left out",
            "WARNING",
        )
    if found.left_out:
        ctx.log(f"{found.left_out} conversations of the {what} do not fit with an answer that counts", "WARNING")
    if not len(found.starts) - 1:
        return None
    return {"tokens": found.tokens, "starts": found.starts, "counted": found.counted}
