"""The sandbox in which chat templates are rendered: Jinja programs that come with models, run as programs of strangers.

A template sees the conversation and the names that transformers gives it. It reaches for nothing else, also on a branch
that is not taken. What could run for ever or fill the memory is bounded: loops and calls by a budget, texts by their
length, filters and methods by a list of those that templates of models use.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinMethodType
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

# Characters of a template; the longest of the families that are known have some 20,000.
MOST_SOURCE = 65_536
# Rounds of loops, calls, and blocks of 64 characters that are made, in one rendering.
_BUDGET = 200_000
_BLOCK = 64
# Of any text or list that a template makes, with all that is in it.
MOST_SIZE = 4_000_000
# fmt: off
_FILTERS = frozenset((
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length",
    "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round", "safe", "select", "selectattr",
    "sort", "string", "title", "trim", "unique", "upper",
))
_METHODS = frozenset((
    "capitalize", "endswith", "find", "get", "index", "isdigit", "isspace", "items", "keys", "lower", "lstrip",
    "removeprefix", "removesuffix", "replace", "rfind", "rstrip", "split", "splitlines", "startswith", "strip", "title",
    "upper", "values",
))
# fmt: on
# A date for templates that ask for today's: the same rows give the same tokens tomorrow.
_DATE = "01 Jan 2026"


class Refusal(TemplateRuntimeError):
    """The template itself does not take the conversation."""


class _Generation(Extension):
    """`{% generation %}`, with which templates mark what the assistant says; it renders what is in it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """What `namespace()` makes; as a text it would be all that is in it, again and again."""

    def __repr__(self) -> str:
        return "namespace"


class _Bounds(NodeTransformer):
    """Puts what spends the budget around each loop, and what measures around each place where something grows; refuses
    what reaches for names of Python's own, or for another template, wherever it stands."""

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:  # noqa: N802 - names of the visitor
        _require_open(node.attr)
        return self.generic_visit(node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        if isinstance(node.arg, nodes.Const):
            _require_open(node.arg.value)
        return self.generic_visit(node)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802
        first = node.args[:1] if node.name in ("rejectattr", "selectattr") else []
        for name in [*first, *(each.value for each in node.kwargs if each.key == "attribute")]:
            if isinstance(name, nodes.Const):
                _require_open(name.value)
        return self.generic_visit(node)

    def visit_Include(self, node: nodes.Node) -> nodes.Node:  # noqa: N802
        raise SecurityError(f"it asks for another template ({type(node).__name__.lower()})")

    visit_Import = visit_FromImport = visit_Extends = visit_Include  # noqa: N815

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.recursive:
            raise SecurityError("recursive loops are not allowed")
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "counted")
        return node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        # The targets of an assignment are a tuple too.
        return _filtered(node, "bounded") if node.ctx == "load" else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        return _filtered(self.generic_visit(node), "bounded")

    visit_List = visit_Dict = visit_Concat  # noqa: N815


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


def _require_open(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise _closed(name)


def _closed(name: str) -> SecurityError:
    return SecurityError(f"it reaches for {name[:60]!r}, which no template may see")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja with a budget, which `begin` fills for one rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], cache_size=0)
        self.left = 0
        own = {
            "tojson": self._charged(_to_json),
            "replace": self._replace,
            "join": self._join,
            "counted": self._counted,
            "bounded": self._bounded,
        }
        self.filters = {name: self._charged(self.filters[name]) for name in _FILTERS} | own
        # Whatever is written into a block, a macro or a variable is put together by this.
        self.concat = self._concat  # pyrefly: ignore[bad-assignment]
        functions: dict[str, Any] = {
            "range": self._range,
            "namespace": _Namespace,
            "raise_exception": _refuse,
            "strftime_now": lambda form: _DATE,
        }
        self.globals = functions

    def begin(self) -> None:
        """Fills the budget."""
        self.left = _BUDGET

    def _generate(self, source: nodes.Template, name: Any, filename: Any, defer_init: bool = False) -> str:
        bounded = _Bounds().visit(source)
        bounded.set_environment(self)
        return super()._generate(bounded, name, filename, defer_init)

    def spend(self, steps: int = 1) -> None:
        """Counts what was done. Raises SecurityError when nothing is left."""
        self.left -= steps
        if self.left < 0:
            raise SecurityError(f"it takes more than {_BUDGET} steps")

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        self.spend()
        if isinstance(function, BuiltinMethodType) and function.__name__ == "replace":
            return self._replace(function.__self__, *args)
        return self._bounded(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("** is not allowed")
        if operator != "+" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise SecurityError(f"{operator} is for numbers only")
        return self._bounded(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if callable(value) and isinstance(obj, str | list | dict | tuple) and attr not in _METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        # Jinja's own answer is nothing, so that a template which tries would pass unseen.
        raise _closed(attribute)

    def _charged(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            self.spend()
            # A range, or what another filter gives one by one, is read in here.
            counted = (self._counted(one) if isinstance(one, range | Iterator) else one for one in args)
            return self._bounded(function(*counted, **kwargs))

        return charged

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.spend()
            yield item

    def _bounded(self, value: Any) -> Any:
        if isinstance(value, int):
            if abs(value) > 1 << 64:
                raise SecurityError("a number has more than 64 bits")
        elif isinstance(value, str | list | tuple | dict):
            self.spend(_size(value) // _BLOCK)
        return value

    def _concat(self, pieces: Iterable[str]) -> str:
        texts: list[str] = []
        size = 0
        for piece in pieces:
            texts.append(piece)
            size += len(piece)
            if size > MOST_SIZE:
                raise SecurityError(f"a text is larger than {MOST_SIZE}")
        return "".join(texts)

    def _join(self, items: Iterable[Any], between: str = "", attribute: str | None = None) -> str:
        texts = [str(item if attribute is None else self.getattr(item, attribute)) for item in self._counted(items)]
        if sum(map(len, texts)) + len(texts) * len(between) > MOST_SIZE:
            raise SecurityError(f"a text is larger than {MOST_SIZE}")
        return self._bounded(between.join(texts))

    def _replace(self, text: Any, old: Any, new: Any, count: int = -1) -> str:
        text, old, new = str(text), str(old), str(new)
        if len(text) + (text.count(old) if count < 0 else count) * len(new) > MOST_SIZE:
            raise SecurityError(f"a text is larger than {MOST_SIZE}")
        return self._bounded(text.replace(old, new, count))

    def _range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        if len(numbers) > _BUDGET:
            raise SecurityError(f"a range has more than {_BUDGET} numbers")
        return numbers


def _size(value: Any) -> int:
    """Characters and items of a value, those inside it too. Raises SecurityError above the limit."""
    size, waiting = 0, [value]
    while waiting:
        found = waiting.pop()
        size += len(found) + 1
        if size > MOST_SIZE:
            raise SecurityError(f"a text or a list is larger than {MOST_SIZE}")
        if isinstance(found, str):
            continue
        inner = [*found, *found.values()] if isinstance(found, dict) else found
        waiting += [one for one in inner if isinstance(one, str | list | tuple | dict)]
    return size


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # As transformers does it: the filter of Jinja would escape what HTML does not like.
    if isinstance(value, str | list | tuple | dict):
        _size(value)
    spaces = None if indent is None else min(int(indent), 8)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=spaces, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise Refusal(str(message)[:200])
