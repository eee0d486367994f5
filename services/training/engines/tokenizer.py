"""A byte-level BPE tokenizer: no text is unknown to it (Radford et al., 2019, section 2.2)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
PAD_ID, BEGIN_ID, END_ID = 0, 1, 2

# Each turn behind a line with its role; an answer ends with the end token. The roles are no special tokens: a tokenizer
# learns them as it learns words.
CONVERSATION_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] }}"
    "{% if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens that stand around texts.

    Attributes:
        begin: what comes before every prompt; some families have nothing there.
        end: what ends an answer, and each text of pre-training.
    """

    begin: tuple[int, ...] = (BEGIN_ID,)
    end: int = END_ID


# Bounds the time: the frequent pairs of bytes, which are what a vocabulary is made of, are known long before.
TRAINING_CHARACTERS = 16_000_000


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Learns the merges of a byte-level BPE.

    Args:
        texts: what to learn from; only the first 16 million characters are read.
        vocabulary_size: at most this many tokens, special ones included.

    Returns:
        A tokenizer that puts `<|begin|>` before each text when special tokens are asked for.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_limited(texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, BEGIN_ID)]
    )
    return tokenizer


def _limited(texts: Iterable[str]) -> Iterable[str]:
    seen = 0
    for text in texts:
        yield text
        seen += len(text)
        if seen >= TRAINING_CHARACTERS:
            return


def tokenizer_files(tokenizer: Tokenizer, context_length: int, template: str) -> dict[str, bytes]:
    """The tokenizer in the Hugging Face layout.

    Args:
        context_length: tokens that the model takes.
        template: chat template that the model was tuned with, so that a chat client asks exactly what it has learned
            to answer.
    """
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "add_bos_token": True,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD}
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": _json(config),
        "special_tokens_map.json": _json(special),
    }


def chat_template(prompt_template: str, opening: str | None = None) -> str:
    """A Jinja template that renders the last message inside the prompt template.

    Args:
        opening: what comes before every prompt; None: the tokenizer's `bos_token`.
    """
    before, _, after = prompt_template.partition("{text}")
    return (
        ("{{ bos_token }}" if opening is None else "{{ " + json.dumps(opening) + " }}")
        + "{{ "
        + json.dumps(before)
        + " }}"
        + "{{ messages[-1]['content'] }}"
        + "{{ "
        + json.dumps(after)
        + " }}"
    )


def _json(document: Mapping[str, str | int | bool]) -> bytes:
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
