"""Next tokens: pre-training on packed text, supervised fine-tuning on answers."""

from __future__ import annotations

import math
from collections.abc import Callable

from transformers import PreTrainedModel

from services.training.domain.spec import Phase
from services.training.engines.batches import AnswerRows, PackedRows
from services.training.engines.encode import (
    Array,
    Encoded,
    Examples,
    answer_room,
    encode_answers,
    encode_texts,
)
from services.training.engines.heldout import evaluate
from services.training.engines.methods.method import Columns, Reading, RowBatch, Start, Work
from services.training.engines.model import Objective


def encode_plain(reading: Reading, batch: RowBatch) -> Encoded:
    """Texts, each with an end."""
    text = reading.text
    return encode_texts(text.tokenizer, text.special, batch.wanted(reading.phase.text_column))


def encode_answered(reading: Reading, batch: RowBatch) -> Encoded:
    """Prompts with their right answers."""
    phase, text = reading.phase, reading.text
    answers = ((answer,) for answer in batch.wanted(phase.answer_column))
    rows = list(zip(batch.wanted(phase.text_column), answers, strict=True))
    limit = reading.length - answer_room(text.tokenizer, phase)
    return encode_answers(text.tokenizer, text.special, rows, phase.prompt_template, limit, reading.length)


def read_examples(array: Callable[[str], Array]) -> Examples:
    """Examples from their arrays by name."""
    return Examples(array("tokens"), array("starts"), array("answers"))


def packed_rows(array: Callable[[str], Array]) -> PackedRows:
    """Rows of pre-training."""
    return PackedRows(array("sequences"))


def answer_rows(array: Callable[[str], Array]) -> AnswerRows:
    """Rows of fine-tuning."""
    return AnswerRows(read_examples(array))


def begin(start: Start) -> Work:
    """The model learns the next tokens of its rows."""
    objective = Objective(decoder(start))

    def measure() -> dict[str, float]:
        assert start.heldout is not None
        found = evaluate(objective, start.heldout, start.group)
        exact = {} if found.exact_match is None else {"exact_match": found.exact_match}
        return {"loss": found.loss, **exact}

    return Work(objective, start.train, start.heldout, measure)


def decoder(start: Start) -> PreTrainedModel:
    """The model of a phase that writes text."""
    assert isinstance(start.model, PreTrainedModel)
    return start.model


def worst_loss(phase: Phase, vocabulary_size: int) -> float:
    """Far above the loss of a uniform guess, which is ln(vocabulary size)."""
    return 3 * math.log(vocabulary_size)


def answered(phase: Phase, columns: Columns) -> list[bool]:
    """Whether a row has an input and a wanted answer."""
    known = set(phase.answers)
    return [
        bool(text and answer) and (not known or answer in known)
        for text, answer in zip(columns[phase.text_column], columns[phase.answer_column], strict=True)
    ]


def asked(phase: Phase, columns: Columns) -> list[bool]:
    """Whether a row has an input."""
    return [bool(text) for text in columns[phase.text_column]]
