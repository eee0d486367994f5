"""Running a recipe over texts. What its operators are called and take is in `services.dataset.domain.operators`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from services.dataset.engines.html import strip_html
from services.dataset.engines.languages import Languages
from services.dataset.engines.personal import find_personal_data, mask_personal_data
from services.dataset.engines.quality import LANGUAGES, C4Quality, FineWebQuality, GopherQuality, Language
from services.dataset.engines.repetition import CharacterRepetition, GopherRepetition, WordRepetition
from services.dataset.engines.rules import (
    Banned,
    count_symbols,
    length_fault,
    letters_fault,
    line_lengths_fault,
    normalise,
    out_of_bounds,
    repeated_line_fault,
    special_characters_fault,
)
from services.dataset.engines.texts import Texts

# Texts and characters at a time: their words fit the cache of a core.
_BATCH_TEXTS, _BATCH_CHARS = 256, 1_000_000

Parameters = dict[str, Any]
Operation = Callable[[Texts], None]


@dataclass(frozen=True)
class Recipe:
    """Compiled steps.

    Attributes:
        steps: operators that look at one row, in order.
        exact_duplicates: whether rows with the same text go.
        near_threshold: Jaccard similarity from which rows count as the same; None: they stay.
        names: all operators in order.
    """

    steps: tuple[tuple[str, Operation], ...]
    exact_duplicates: bool
    near_threshold: float | None
    names: tuple[str, ...]

    @classmethod
    def compile(cls, spec: Mapping[str, Any]) -> Recipe:
        """From `language` and `steps`, each a mapping of `operator` and its parameters."""
        language = LANGUAGES[spec["language"]]
        single: list[tuple[str, Operation]] = []
        exact, near = False, None
        for step in spec["steps"]:
            parameters = {name: value for name, value in step.items() if name != "operator"}
            name = step["operator"]
            if name == "exact_duplicates":
                exact = True
            elif name == "near_duplicates":
                near = parameters["threshold"]
            else:
                single.append((name, OPERATIONS[name](parameters, language)))
        return cls(tuple(single), exact, near, tuple(step["operator"] for step in spec["steps"]))

    def apply(self, texts: Sequence[str]) -> Texts:
        """What the steps that look at one row make of texts."""
        done = Texts(())
        for batch in _batches(texts):
            worked = Texts(batch)
            for name, operation in self.steps:
                worked.begin(name)
                operation(worked)
            done.extend(worked)
        return done


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    chars = 0
    for text in texts:
        if batch and (len(batch) == _BATCH_TEXTS or chars + len(text) > _BATCH_CHARS):
            yield batch
            batch, chars = [], 0
        batch.append(text)
        chars += len(text)
    if batch:
        yield batch


def _each(change: Callable[[str], str]) -> Operation:
    return lambda texts: texts.each(change)


def _judge(fault: Callable[[str], str | None]) -> Operation:
    return lambda texts: texts.judge(fault)


def _personal_data(parameters: Parameters, _language: Language) -> Operation:
    if parameters["action"] == "mask":
        return _each(mask_personal_data)

    def fault(text: str) -> str | None:
        kind = find_personal_data(text)
        return None if kind is None else f"has {kind}"

    return _judge(fault)


def _words(parameters: Parameters, _language: Language) -> Operation:
    def apply(texts: Texts) -> None:
        rows, table = texts.words
        for at, count in zip(rows, table.counts.tolist(), strict=True):
            reason = out_of_bounds(count, "words", parameters["min_words"], parameters["max_words"])
            if reason:
                texts.drop(at, reason)

    return apply


def _symbols(parameters: Parameters, _language: Language) -> Operation:
    def apply(texts: Texts) -> None:
        rows, table = texts.words
        for at, count in zip(rows, table.counts.tolist(), strict=True):
            per_word = count_symbols(texts.texts[at]) / max(1, count)
            reason = out_of_bounds(per_word, "symbols a word", None, parameters["max_per_word"])
            if reason:
                texts.drop(at, reason)

    return apply


# Operators that look at one row.
OPERATIONS: dict[str, Callable[[Parameters, Language], Operation]] = {
    "html": lambda _, __: _each(strip_html),
    "normalise": lambda p, _: _each(partial(normalise, form=p["form"])),
    "length": lambda p, _: _judge(partial(length_fault, **p)),
    "words": _words,
    "letters": lambda p, _: _judge(partial(letters_fault, **p)),
    "symbols": _symbols,
    "repeated_line": lambda p, _: _judge(partial(repeated_line_fault, **p)),
    "line_lengths": lambda p, _: _judge(partial(line_lengths_fault, **p)),
    "special_characters": lambda p, _: _judge(partial(special_characters_fault, **p)),
    "word_repetition": lambda p, _: WordRepetition(p),
    "character_repetition": lambda p, _: CharacterRepetition(p),
    "gopher_quality": GopherQuality,
    "gopher_repetition": lambda p, _: GopherRepetition(p),
    "c4_quality": C4Quality,
    "fineweb_quality": FineWebQuality,
    "languages": lambda p, _: _judge(Languages(p["keep"], p["min_probability"]).fault),
    "banned_words": lambda p, _: _judge(Banned(p["words"]).fault),
    "personal_data": _personal_data,
}
