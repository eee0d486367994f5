"""Rows to token arrays: packed sequences for pre-training, prompt and answer pairs for fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from tokenizers import Encoding, Tokenizer

from services.training.domain.spec import PLACEHOLDER, Phase
from services.training.engines.tokenizer import SpecialTokens

Array = np.ndarray
T = TypeVar("T")

# Texts are encoded in parallel inside one call; a batch bounds the memory that their Python objects take.
_BATCH = 4096
# A token of prose stands for two to five characters: what lies far beyond is not among the first tokens.
_CHARACTERS_A_TOKEN = 16


@dataclass(frozen=True)
class Examples:
    """Prompt and answer pairs, one after the other.

    Attributes:
        tokens: all tokens, int32[total].
        starts: where each example begins and the last one ends, int64[n + 1].
        answers: where the answer of each begins inside it, int32[n].
    """

    tokens: Array
    starts: Array
    answers: Array

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, number: int) -> tuple[Array, int]:
        """Tokens of an example, and where its answer begins."""
        return self.tokens[self.starts[number] : self.starts[number + 1]], int(self.answers[number])

    @property
    def lengths(self) -> Array:
        """Tokens of each, int64[n]."""
        return np.diff(self.starts)


def pack(tokenizer: Tokenizer, special: SpecialTokens, texts: Iterable[str], sequence_length: int) -> Array:
    """Texts with an end token after each, cut into sequences without padding.

    Returns:
        int32[n, sequence_length]; the rest that fills no sequence is dropped.
    """
    pieces: list[Array] = []
    for batch in _batches(texts):
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            pieces.append(np.asarray([*encoding.ids, special.end], dtype=np.int32))
    flat = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32)
    count = len(flat) // sequence_length
    return flat[: count * sequence_length].reshape(count, sequence_length)


def encode_examples(
    tokenizer: Tokenizer,
    special: SpecialTokens,
    rows: Iterable[tuple[str, str]],
    phase: Phase,
    sequence_length: int,
) -> Examples:
    """Prompts with their answers. A text that is too long loses its end, so that template and answer stay whole.

    Args:
        rows: pairs of input and answer.
        phase: its template and its list of answers.

    Returns:
        Only the rows whose answer is wanted and fits.
    """
    wanted = set(phase.answers)
    limit = sequence_length - answer_room(tokenizer, phase)
    chosen = ((text, (answer,)) for text, answer in rows if answer and text and (not wanted or answer in wanted))
    return encode_answers(tokenizer, special, chosen, phase.prompt_template, limit, sequence_length)


def encode_answers(
    tokenizer: Tokenizer,
    special: SpecialTokens,
    rows: Iterable[tuple[str, tuple[str, ...]]],
    template: str,
    limit: int,
    sequence_length: int,
) -> Examples:
    """Prompts with one or more answers each: an example for each answer, those of a row one after the other.

    Args:
        rows: inputs with their answers.
        limit: most tokens of a prompt.
        sequence_length: most tokens of prompt, answer and end.

    Returns:
        Only the rows of which every answer fits.
    """
    tokens: list[list[int]] = []
    answers: list[int] = []
    for batch in _batches(rows):
        prompts = encode_prompts(tokenizer, special, [text for text, _ in batch], template, limit)
        flat = [answer for _, own in batch for answer in own]
        endings = iter(tokenizer.encode_batch(flat, add_special_tokens=False))
        for prompt, (_, own) in zip(prompts, batch, strict=True):
            made = [[*prompt, *next(endings).ids, special.end] for _ in own]
            if all(len(example) <= sequence_length for example in made):
                tokens += made
                answers += [len(prompt)] * len(made)
    starts = np.concatenate([[0], np.cumsum([len(example) for example in tokens])]).astype(np.int64)
    flat_tokens = np.fromiter((token for each in tokens for token in each), dtype=np.int32, count=int(starts[-1]))
    return Examples(flat_tokens, starts, np.asarray(answers, dtype=np.int32))


def answer_room(tokenizer: Tokenizer, phase: Phase) -> int:
    """Tokens kept free for the answer and its end: the longest wanted one, or 16 where they are not listed."""
    if not phase.answers:
        return 17
    encodings = tokenizer.encode_batch(list(phase.answers), add_special_tokens=False)
    return 1 + max(len(encoding.ids) for encoding in encodings)


def encode_prompts(
    tokenizer: Tokenizer, special: SpecialTokens, texts: Sequence[str], template: str, limit: int
) -> list[list[int]]:
    """Texts inside the template, what begins a prompt first, at most `limit` tokens. The text is cut, never the
    template."""
    begin = special.begin
    most = limit - len(begin)
    room = most - len(tokenizer.encode(template.replace(PLACEHOLDER, ""), add_special_tokens=False).ids)
    cut = [text[: max(room, 1) * _CHARACTERS_A_TOKEN] for text in texts]
    encodings = tokenizer.encode_batch(cut, add_special_tokens=False)
    shortened = [_first_tokens(text, encoding, room) for text, encoding in zip(cut, encodings, strict=True)]
    prompts = [template.replace(PLACEHOLDER, text) for text in shortened]
    # The whole prompt is encoded as one string, as a server will do it; a seam may give a token more than its parts.
    return [
        [*begin, *encoding.ids] if len(encoding.ids) <= most else _retry(tokenizer, begin, text, template, most, room)
        for text, encoding in zip(shortened, tokenizer.encode_batch(prompts, add_special_tokens=False), strict=True)
    ]


def _retry(tokenizer: Tokenizer, begin: tuple[int, ...], text: str, template: str, most: int, room: int) -> list[int]:
    for shorter in range(room - 1, 0, -1):
        text = _first_tokens(text, tokenizer.encode(text, add_special_tokens=False), shorter)
        ids = tokenizer.encode(template.replace(PLACEHOLDER, text), add_special_tokens=False).ids
        if len(ids) <= most:
            return [*begin, *ids]
    return [*begin, *tokenizer.encode(template.replace(PLACEHOLDER, ""), add_special_tokens=False).ids]


def _first_tokens(text: str, encoding: Encoding, count: int) -> str:
    if len(encoding.ids) <= count:
        return text
    return text[: encoding.offsets[count - 1][1]] if count > 0 else ""


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
