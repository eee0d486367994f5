"""Rows to token arrays: texts for pre-training, prompt and answer pairs for fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from tokenizers import Encoding, Tokenizer

from services.training.domain.spec import PLACEHOLDER, Phase
from services.training.engines.tokenizer import SpecialTokens
from services.training.engines.word_tokens import token_bytes, token_ids

Array = np.ndarray

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


@dataclass(frozen=True)
class Encoded:
    """What rows of a batch became, one after the other.

    Attributes:
        kept: which rows of the batch they are, rising, int64[rows]; the others gave nothing.
        starts: where each example begins and the last one ends, int64[n + 1]; n is a multiple of the rows.
        by_token: arrays with an entry a token by name: `tokens` int32, of conversations also `counted` bool.
        by_example: arrays with an entry an example by name: `answers` int32, where the answer begins.
        notes: numbers to be told about the rows, by name.
    """

    kept: Array
    starts: Array
    by_token: dict[str, Array]
    by_example: dict[str, Array] = field(default_factory=dict[str, Array])
    notes: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def arrays(self) -> dict[str, Array]:
        """All but the numbers of the rows and the notes, by name."""
        return {**self.by_token, "starts": self.starts, **self.by_example}


def starts_of(lengths: Sequence[int] | Array) -> Array:
    """Where things of these lengths begin one after the other, and where the last one ends, int64[n + 1]."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def joined(rows: Sequence[Sequence[int]], starts: Array) -> Array:
    """Tokens of all rows one after the other, int32[total]."""
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(starts[-1]))


def encode_texts(tokenizer: Tokenizer, special: SpecialTokens, texts: Sequence[str]) -> Encoded:
    """Texts with an end token after each."""
    end = np.int32(special.end).tobytes()
    rows = token_bytes(tokenizer, texts)
    starts = starts_of([len(row) // len(end) + 1 for row in rows])
    tokens = np.frombuffer(b"".join([row + end for row in rows]), dtype=np.int32)
    return Encoded(np.arange(len(rows)), starts, {"tokens": tokens})


def encode_answers(
    tokenizer: Tokenizer,
    special: SpecialTokens,
    rows: Sequence[tuple[str, tuple[str, ...]]],
    template: str,
    limit: int,
    sequence_length: int,
) -> Encoded:
    """Prompts with one or more answers each: an example for each answer, those of a row one after the other. A text
    that is too long loses its end, so that template and answer stay whole.

    Args:
        rows: inputs with their answers, as many in each row.
        limit: most tokens of a prompt.
        sequence_length: most tokens of prompt, answer and end.

    Returns:
        Only the rows of which every answer fits.
    """
    prompts = encode_prompts(tokenizer, special, [text for text, _ in rows], template, limit)
    flat = [answer for _, own in rows for answer in own]
    endings = iter(token_ids(tokenizer, flat))
    tokens: list[list[int]] = []
    answers: list[int] = []
    kept: list[int] = []
    for number, (prompt, (_, own)) in enumerate(zip(prompts, rows, strict=True)):
        made = [[*prompt, *next(endings), special.end] for _ in own]
        if all(len(example) <= sequence_length for example in made):
            tokens += made
            answers += [len(prompt)] * len(made)
            kept.append(number)
    starts = starts_of([len(example) for example in tokens])
    found = {"answers": np.asarray(answers, dtype=np.int32)}
    return Encoded(np.asarray(kept, dtype=np.int64), starts, {"tokens": joined(tokens, starts)}, found)


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
    # The whole prompt is encoded as one string, as a server will do it; a seam may give a token more than its parts.
    prompts = _in_template(tokenizer, cut, template)
    long = [number for number, ids in enumerate(prompts) if len(ids) > most]
    encodings = tokenizer.encode_batch([cut[number] for number in long], add_special_tokens=False)
    shortened = [_first_tokens(cut[number], each, room) for number, each in zip(long, encodings, strict=True)]
    for number, text, ids in zip(long, shortened, _in_template(tokenizer, shortened, template), strict=True):
        prompts[number] = ids if len(ids) <= most else _retry(tokenizer, text, template, most, room)
    return [[*begin, *ids] for ids in prompts]


def _in_template(tokenizer: Tokenizer, texts: Sequence[str], template: str) -> list[list[int]]:
    return token_ids(tokenizer, [template.replace(PLACEHOLDER, text) for text in texts])


def _retry(tokenizer: Tokenizer, text: str, template: str, most: int, room: int) -> list[int]:
    for shorter in range(room - 1, 0, -1):
        text = _first_tokens(text, tokenizer.encode(text, add_special_tokens=False), shorter)
        ids = tokenizer.encode(template.replace(PLACEHOLDER, text), add_special_tokens=False).ids
        if len(ids) <= most:
            return ids
    return tokenizer.encode(template.replace(PLACEHOLDER, ""), add_special_tokens=False).ids


def _first_tokens(text: str, encoding: Encoding, count: int) -> str:
    if len(encoding.ids) <= count:
        return text
    return text[: encoding.offsets[count - 1][1]] if count > 0 else ""
