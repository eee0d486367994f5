"""Target lists: what a language model is asked about a request, and what its answer may be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from libs.common.domain import DomainError
from services.dataset.domain.fields import as_list, as_mapping

MOST_PHRASES = 50
LONGEST_PHRASE = 80
# Fifty phrases of eighty characters, three times, would be more; nobody reads so many.
MOST_TOKENS = 1_024

_PHRASES = {
    "type": "array",
    "items": {"type": "string", "minLength": 1, "maxLength": LONGEST_PHRASE},
    "maxItems": MOST_PHRASES,
}
# What an answer is constrained to (JSON Schema 2020-12).
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"targets": {**_PHRASES, "minItems": 1}, "excluded": _PHRASES, "unread": _PHRASES},
    "required": ["targets", "excluded", "unread"],
    "additionalProperties": False,
}
INSTRUCTIONS = """\
You prepare images to be annotated. Somebody says, in any language, what is to be marked in them. An object detector \
will look for short English noun phrases; give it those. Answer with JSON:
`targets`: the kinds of things to be marked, a noun phrase in the singular each, with the properties that can be seen \
(`red car`, `person with a helmet`);
`excluded`: kinds of things that must not be marked although they fit a target;
`unread`: words of the request that no image can show or that you do not understand."""


@dataclass(frozen=True)
class TargetList:
    """What a request was taken for. See `TargetReading` of annotation.proto for the attributes."""

    targets: tuple[str, ...]
    excluded: tuple[str, ...]
    unread: tuple[str, ...]
    reader: str


def parse_answer(text: str, reader: str) -> TargetList:
    """The target list in a model's answer.

    Args:
        text: JSON by `SCHEMA`; not every model that is asked for it keeps to it.
        reader: the model.

    Raises:
        DomainError: PREFLIGHT_FAILED, it is no target list.
    """
    try:
        given = as_mapping(json.loads(text))
    except ValueError:
        given = None
    if given is None:
        raise _unusable(reader, "it is no JSON object")
    lists = {name: tuple(dict.fromkeys(_phrases(given, name, reader))) for name in SCHEMA["required"]}
    if not lists["targets"]:
        raise _unusable(reader, "it names nothing to be found")
    return TargetList(**lists, reader=reader)


def _phrases(given: Mapping[object, object], name: str, reader: str) -> Iterator[str]:
    listed = as_list(given.get(name))
    if listed is None or len(listed) > MOST_PHRASES:
        raise _unusable(reader, f"{name} is no list of {MOST_PHRASES} phrases at most")
    for phrase in listed:
        if not isinstance(phrase, str) or len(phrase) > LONGEST_PHRASE:
            raise _unusable(reader, f"{name} has what is no phrase of {LONGEST_PHRASE} characters at most")
        if words := " ".join(phrase.split()):
            yield words


def _unusable(reader: str, why: str) -> DomainError:
    message = (
        f"The answer of {reader} is no list of targets: {why}. Ask again, ask another model, or leave it to the rules."
    )
    return DomainError("PREFLIGHT_FAILED", message, check="language_model", detail=why)
