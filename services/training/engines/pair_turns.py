"""Pairs of answers in a conversation to token arrays, as the chat template renders them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from services.training.domain.conversations import Preference, without_first_turn
from services.training.engines.chat_template import ChatTemplate, TemplateError
from services.training.engines.encode import Encoded, joined, starts_of
from services.training.engines.turns import not_rendered


def encode_pairs(
    tokenizer: Tokenizer, template: ChatTemplate, rows: Sequence[tuple[int, Preference]], limit: int
) -> Encoded:
    """The better answer of each pair behind its prompt, then the worse one. A prompt that is too long loses its oldest
    turns, the last one its beginning; answers stay whole.

    Args:
        rows: number of each row, for errors, and its pair.
        limit: tokens of prompt and answer at most.

    Returns:
        Only the pairs whose answers differ and leave room for a token of the prompt.

    Raises:
        EngineError: CONTENT_INVALID, the template refuses a pair.
    """
    tokens: list[list[int]] = []
    answers: list[int] = []
    kept: list[int] = []
    for place, (number, pair) in enumerate(rows):
        if pair.chosen == pair.rejected:
            continue
        try:
            prompt, both = _fitting(tokenizer, template, pair, limit)
        except TemplateError as error:
            raise not_rendered(number, error) from None
        if prompt:
            tokens += [[*prompt, *answer] for answer in both]
            answers += [len(prompt)] * 2
            kept.append(place)
    starts = starts_of([len(example) for example in tokens])
    begins = {"answers": np.asarray(answers, dtype=np.int32)}
    return Encoded(np.asarray(kept, dtype=np.int64), starts, {"tokens": joined(tokens, starts)}, begins)


def _fitting(
    tokenizer: Tokenizer, template: ChatTemplate, pair: Preference, limit: int
) -> tuple[list[int], tuple[list[int], list[int]]]:
    """Tokens of the prompt, none where nothing of it fits, and of both answers."""
    messages = pair.prompt
    while True:
        prompt, *answers = _encoded(tokenizer, template, messages, pair)
        room = limit - max(map(len, answers))
        shorter = without_first_turn(messages) if len(prompt) > room else None
        if shorter is None:
            return prompt[-room:] if room > 0 else [], (answers[0], answers[1])
        messages = shorter


def _encoded(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[dict[str, object]], pair: Preference
) -> list[list[int]]:
    """Tokens of the prompt and of both answers, encoded apart, as an answer comes token by token behind its prompt."""
    texts = template.continued(messages, (pair.chosen, pair.rejected))
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
