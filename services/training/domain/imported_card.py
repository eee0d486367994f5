"""The card of a model from outside: what its files say, and what is not known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def imported_card(name: str, facts: Mapping[str, Any]) -> str:
    """The card in Markdown.

    Args:
        name: of the version.
        facts: what the import found: `origin`, `licence`, `architecture`, `parameter_count`, `context_length`,
            `manifest_digest`.
    """
    context = f"a context of {facts['context_length']:,} tokens" if facts["context_length"] else "a context not stated"
    licence = f"Its README states the licence `{facts['licence']}`." if facts["licence"] else "It states no licence."
    return f"""# {name.split("/")[3]}, version {name.rsplit("/", 1)[1]}

A model of the family `{facts["architecture"]}` with {facts["parameter_count"]:,} parameters and {context}, imported
from {facts["origin"]}.

Manifest: `{facts["manifest_digest"]}`

## Licence

{licence} Whether that is so, and what it allows, is for people to say.

## What was checked

- Weights are safetensors whose headers fit their files; nothing was unpickled.
- The model asks for no code of its own.
- Its tokenizer loads and its chat templates render within limits.

## Limits

- What it learned from is not known here; whatever was in that, errors and prejudice included, may be in its answers.
- How well it does a task is what its evaluations and gates say."""
