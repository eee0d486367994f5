"""Prompts: named lines of immutable versions, and what a version makes of an input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.common.domain import DomainError, Resource

INPUT = "input"
_VARIABLE = re.compile(r"\{([a-z][a-z0-9_]{0,62})\}")


@dataclass(kw_only=True)
class Prompt(Resource):
    """A named line of versions."""

    display_name: str = ""
    description: str = ""
    version_count: int = 0

    def next_version(self) -> str:
        """The name of the version that comes now; versions are numbered from 1."""
        self.version_count += 1
        return f"{self.name}/versions/{self.version_count}"

    @property
    def latest_version(self) -> str:
        return f"{self.name}/versions/{self.version_count}" if self.version_count else ""


@dataclass(kw_only=True)
class PromptVersion(Resource):
    """An immutable prompt.

    Attributes:
        system: put before the conversation.
        template: around the last user message; empty: the message as it is.
        variables: default of each variable of the template beside `input`.
        temperature: where the caller leaves it open.
        max_tokens: where the caller leaves it open; 0: as many as fit.
        raw: the rendered text goes to the model without a chat template.
    """

    system: str = ""
    template: str = ""
    variables: dict[str, str] = field(default_factory=dict[str, str])
    temperature: float = 0.0
    max_tokens: int = 0
    raw: bool = False

    def require_valid(self) -> None:
        """Raises INVALID_FIELD for a template that could not be rendered."""
        used = set(_VARIABLE.findall(self.template))
        if self.template and INPUT not in used:
            message = "prompt_version.template: must contain {input}, the place of the user's message"
            raise DomainError("INVALID_FIELD", message, field="prompt_version.template")
        missing = sorted(used - {INPUT} - set(self.variables))
        if missing:
            message = f"prompt_version.variables: no default for {{{missing[0]}}} of the template"
            raise DomainError("INVALID_FIELD", message, field="prompt_version.variables")

    def render(self, text: str, variables: Mapping[str, str]) -> str:
        """What the model sees for an input. Values are put in as they are: braces in them are not variables.

        Raises INVALID_FIELD for a variable that the prompt does not have.
        """
        for name in variables:
            if name not in self.variables:
                message = f"variables: the prompt has no variable {name}"
                raise DomainError("INVALID_FIELD", message, field="variables")
        values = {**self.variables, **variables, INPUT: text}
        return _VARIABLE.sub(lambda found: values[found.group(1)], self.template) if self.template else text
