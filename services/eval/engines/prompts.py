"""Inputs inside a prompt template, cut so that template and answer fit the context."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

PLACEHOLDER = "{text}"


def fit(tokenizer: Tokenizer, texts: Sequence[str], template: str, limit: int) -> list[str]:
    """Prompts of at most `limit` tokens. A text that is too long loses its end; the template stays whole.

    Args:
        tokenizer: of the model.
        texts: inputs.
        template: with `{text}` where the input goes.
        limit: tokens of a prompt, special tokens included.
    """
    bare = len(tokenizer.encode(template.replace(PLACEHOLDER, "")).ids)
    prompts = [template.replace(PLACEHOLDER, text) for text in texts]
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(prompts)]
    return [
        prompt if length <= limit else _cut(tokenizer, text, template, limit, limit - bare)
        for prompt, text, length in zip(prompts, texts, lengths, strict=True)
    ]


def _cut(tokenizer: Tokenizer, text: str, template: str, limit: int, room: int) -> str:
    # A seam between template and text may give a token more than the parts have: try one less until it fits.
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    for count in range(min(room, len(offsets)), 0, -1):
        prompt = template.replace(PLACEHOLDER, text[: offsets[count - 1][1]])
        if len(tokenizer.encode(prompt).ids) <= limit:
            return prompt
    return template.replace(PLACEHOLDER, "")
