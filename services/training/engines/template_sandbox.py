"""The sandbox in which a chat template of a model from outside is rendered, with the names that transformers gives it.

Jinja's own sandbox answers a forbidden attribute with nothing, so that a template which tries passes unseen; here it
is refused, also on a branch that is not taken.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# A date for templates that ask for today's; what it is does not matter here.
_DATE = "01 Jan 2026"


class Generation(Extension):
    """`{% generation %}`, with which templates mark what the assistant says; it renders what is in it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise PermissionError(f"it reaches for {attribute!r}, which no template may see")


def environment() -> ImmutableSandboxedEnvironment:
    """The sandbox."""
    made = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    made.filters["tojson"] = _to_json
    functions: dict[str, Any] = {"raise_exception": _refuse, "strftime_now": lambda form: _DATE}
    made.globals |= functions
    return made


def forbidden_name(engine: ImmutableSandboxedEnvironment, text: str) -> str:
    """A name with two underscores in front that a template writes out anywhere; nothing if there is none.

    Raises:
        jinja2.TemplateSyntaxError: It is no template.
    """
    tree = engine.parse(text)
    for found in tree.find_all(nodes.Getattr):
        if found.attr.startswith("__"):
            return found.attr
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str) and constant.value.startswith("__"):
            return constant.value
    for name in tree.find_all(nodes.Name):
        if name.name.startswith("__"):
            return name.name
    return ""


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
