"""Next tokens: pre-training on packed text, supervised fine-tuning on answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from transformers import PreTrainedModel

from services.training.domain.spec import Phase
from services.training.engines.base import BaseText
from services.training.engines.batches import AnswerRows, PackedRows
from services.training.engines.encode import Array, Examples, encode_examples, pack
from services.training.engines.heldout import evaluate
from services.training.engines.methods.method import Arrays, Columns, Reading, Start, Work
from services.training.engines.model import Objective


def encode_texts(reading: Reading) -> Arrays | None:
    """Plain text as packed sequences."""
    texts = reading.columns[reading.phase.text_column]
    sequences = _pack_enough(reading.text, texts, reading.order, reading.length, reading.wanted)
    return {"sequences": sequences} if len(sequences) else None


def encode_answered(reading: Reading) -> Arrays | None:
    """Prompts with their right answers."""
    rows = answered(reading.columns, reading.phase, reading.order, reading.wanted)
    text = reading.text
    return example_arrays(encode_examples(text.tokenizer, text.special, rows, reading.phase, reading.length))


def example_arrays(examples: Examples) -> Arrays | None:
    """Examples as arrays by name; None when there are none."""
    if not len(examples):
        return None
    return {"tokens": examples.tokens, "starts": examples.starts, "answers": examples.answers}


def read_examples(array: Callable[[str], Array]) -> Examples:
    """What `example_arrays` gave."""
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


def _pack_enough(text: BaseText, texts: list[str], order: np.ndarray, length: int, wanted: int) -> np.ndarray:
    """Sequences from texts in the given order until there are `wanted` or the texts end."""
    # A token stands for two to five characters: three is a first guess, and the loop takes more where that was low.
    parts: list[np.ndarray] = []
    found = start = 0
    while found < wanted and start < len(order):
        end, characters = start, 0
        while end < len(order) and characters < (wanted - found) * length * 3:
            characters += len(texts[order[end]])
            end += 1
        sequences = pack(text.tokenizer, text.special, (texts[index] for index in order[start:end]), length)
        parts.append(sequences)
        # The rest of a part that fills no sequence is dropped.
        found, start = found + len(sequences), end
    packed = np.concatenate(parts) if parts else np.zeros((0, length), dtype=np.int32)
    return packed[:wanted]


def answered(columns: Columns, phase: Phase, order: np.ndarray, wanted: int) -> Iterator[tuple[str, str]]:
    """Inputs with their right answers, in the given order, at most `wanted`."""
    texts, answers, known = columns[phase.text_column], columns[phase.answer_column], set(phase.answers)
    taken = 0
    for index in order:
        answer = answers[index]
        if texts[index] and answer and (not known or answer in known):
            yield texts[index], answer
            taken += 1
            if taken == wanted:
                return
