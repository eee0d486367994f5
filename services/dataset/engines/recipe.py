"""Running a recipe over texts and rows. `services.dataset.domain.operators` says what operators are called and take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

from libs.compute.versions import to_json
from services.dataset.engines.chinese import to_simplified
from services.dataset.engines.expressions import compute, keep_where
from services.dataset.engines.fitting import impute, standardise
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
from services.dataset.engines.texts import Source, StoppedAt, Texts
from services.dataset.engines.user_function import UserFunction

# Texts and characters at a time: their words fit the cache of a core.
_BATCH_TEXTS, _BATCH_CHARS = 256, 1_000_000

# Operators that run what a user wrote, and the parameter with it.
_CODE = {"expression": "keep", "compute": "value", "python": "function"}

Parameters = dict[str, Any]
Operation = Callable[[Texts], None]


@dataclass(frozen=True)
class Recipe:
    """Compiled steps.

    Attributes:
        steps: operators that look at one row, in order.
        exact_duplicates: whether rows with the same text go.
        near_threshold: Jaccard similarity from which rows count as the same; None: they stay.
        names: what the report calls each step, in order.
        rewrites: whether a step may give columns other types.
        facts: name to what the report says about the step beside counts: fields of `argosy.dataset.v1.RuleReport`.
    """

    steps: tuple[tuple[str, Operation], ...]
    exact_duplicates: bool
    near_threshold: float | None
    names: tuple[str, ...]
    rewrites: bool
    facts: Mapping[str, Mapping[str, Any]]

    @classmethod
    def compile(cls, spec: Mapping[str, Any]) -> Recipe:
        """From `language` and `steps`, each a mapping of `operator` and its parameters."""
        language = LANGUAGES[spec["language"]]
        single: list[tuple[str, Operation]] = []
        exact, near = False, None
        names = _names(spec["steps"])
        for label, step in zip(names, spec["steps"], strict=True):
            parameters = {name: value for name, value in step.items() if name != "operator"}
            name = step["operator"]
            if name == "exact_duplicates":
                exact = True
            elif name == "near_duplicates":
                near = parameters["threshold"]
            else:
                single.append((label, OPERATIONS[name](parameters, language)))
        rewrites = any(step["operator"] in _REWRITING for step in spec["steps"])
        facts = {label: _facts(step) for label, step in zip(names, spec["steps"], strict=True)}
        return cls(tuple(single), exact, near, names, rewrites, facts)

    def apply(self, texts: Sequence[str], source: Source | None = None) -> Texts:
        """What the steps that look at one row make of texts and of their rows.

        Raises:
            StoppedAt: A step of the user's failed at a row; its number counts from the first text.
        """
        source = source or Source.of_texts(texts)
        done = Texts((), source)
        with ExitStack() as sandboxes:
            for _, operation in self.steps:
                if isinstance(operation, AbstractContextManager):
                    sandboxes.enter_context(operation)
            for batch in _batches(texts):
                worked = Texts(batch, source, len(done.texts))
                self._work(worked, len(done.texts))
                done.extend(worked)
        return done

    def _work(self, batch: Texts, first: int) -> None:
        for name, operation in self.steps:
            batch.begin(name)
            try:
                operation(batch)
            except StoppedAt as stop:
                raise StoppedAt(first + stop.at, name, stop.reason, is_setup=stop.is_setup) from None


def _names(steps: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """A name for each step: its own or its operator's, the second and later ones numbered."""
    seen: Counter[str] = Counter()
    names: list[str] = []
    for step in steps:
        name = step.get("name") or step["operator"]
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return tuple(names)


def _facts(step: Mapping[str, Any]) -> dict[str, Any]:
    """What says which code of the user's ran, and which figures were taken."""
    facts: dict[str, Any] = {"operator": step["operator"]}
    if step["operator"] in _CODE:
        facts["code_digest"] = sha256(step[_CODE[step["operator"]]].encode()).hexdigest()
    if "fitted" in step:
        # As JSON, because a text may have what the database of the service cannot keep.
        facts["fitted"] = [{**one, "mode": to_json(one["mode"])} if "mode" in one else one for one in step["fitted"]]
    return facts


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


def _drop_missing(parameters: Parameters, _language: Language) -> Operation:
    def apply(texts: Texts) -> None:
        for at in texts.left:
            row = texts.row(at)
            missing = next((name for name in parameters["columns"] if row.get(name) is None), None)
            if missing is not None:
                texts.drop(at, f"has no {missing}")

    return apply


# Operators after which columns may have other types than before.
_REWRITING = ("compute", "python", "impute", "standardise")
# Operators that look at one row.
OPERATIONS: dict[str, Callable[[Parameters, Language], Operation]] = {
    "html": lambda _, __: _each(strip_html),
    "normalise": lambda p, _: _each(partial(normalise, form=p["form"])),
    "to_simplified": lambda _, __: _each(to_simplified),
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
    "expression": lambda p, _: keep_where(p["keep"]),
    "compute": lambda p, _: compute(p["column"], p["value"]),
    "python": lambda p, _: UserFunction(p["function"], p["on_error"], p["max_seconds"], p["max_memory_mb"]),
    "drop_missing": _drop_missing,
    "impute": lambda p, _: impute(p["columns"], p["method"], p["value"], p.get("fitted", [])),
    "standardise": lambda p, _: standardise(p["columns"], p["method"], p.get("fitted", [])),
}
