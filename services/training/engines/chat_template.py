"""Chat templates: Jinja programs that come with models, so they are run as programs of strangers.

A template sees the conversation and a few functions. What could run for ever or fill the memory is bounded: loops and
calls by a budget, texts by their length, filters and methods by a list of those that templates of models use.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import BuiltinMethodType
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from libs.common.blobs import BlobStore
from libs.compute.context import EngineError
from services.training.domain.conversations import Message, counts
from services.training.engines.template_sandbox import Generation
from services.training.engines.tokenizer import BEGIN, CONVERSATION_TEMPLATE, END, PAD

# The longest of the families that are known have 10,000 characters.
_MOST_SOURCE = 65_536
# Rounds of loops, calls, and blocks of 64 characters that are made, in one rendering.
_BUDGET = 200_000
_BLOCK = 64
# Of any text or list that a template makes, with all that is in it.
_MOST_SIZE = 4_000_000
# fmt: off
_FILTERS = frozenset((
    "capitalize", "count", "d", "default", "dictsort", "first", "int", "items", "last", "length", "list", "lower",
    "map", "reject", "rejectattr", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "title",
    "trim", "unique", "upper",
))
_METHODS = frozenset((
    "capitalize", "endswith", "find", "get", "index", "isdigit", "isspace", "items", "keys", "lower", "lstrip",
    "removeprefix", "removesuffix", "replace", "rfind", "rstrip", "split", "splitlines", "startswith", "strip", "title",
    "upper", "values",
))
# fmt: on
_PROBE = ("first-question", "first-answer", "second-question", "second-answer")


class TemplateError(Exception):
    """A template cannot be run, or does not render a conversation so that its answers can be told."""


class _Namespace(Namespace):
    """What `namespace()` makes; as a text it would be all that is in it, again and again."""

    def __repr__(self) -> str:
        return "namespace"


class _Bounds(NodeTransformer):
    """Puts what spends the budget around each loop, and what measures around each place where something grows."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - names of the visitor
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


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja with a budget."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation], cache_size=0)
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
        functions: dict[str, Any] = {"range": self._range, "namespace": _Namespace, "raise_exception": _refuse}
        self.globals = functions

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
            if size > _MOST_SIZE:
                raise SecurityError(f"a text is larger than {_MOST_SIZE}")
        return "".join(texts)

    def _join(self, items: Iterable[Any], between: str = "", attribute: str | None = None) -> str:
        texts = [str(item if attribute is None else self.getattr(item, attribute)) for item in self._counted(items)]
        if sum(map(len, texts)) + len(texts) * len(between) > _MOST_SIZE:
            raise SecurityError(f"a text is larger than {_MOST_SIZE}")
        return self._bounded(between.join(texts))

    def _replace(self, text: Any, old: Any, new: Any, count: int = -1) -> str:
        text, old, new = str(text), str(old), str(new)
        if len(text) + (text.count(old) if count < 0 else count) * len(new) > _MOST_SIZE:
            raise SecurityError(f"a text is larger than {_MOST_SIZE}")
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
        if size > _MOST_SIZE:
            raise SecurityError(f"a text or a list is larger than {_MOST_SIZE}")
        if isinstance(found, str):
            continue
        inner = [*found, *found.values()] if isinstance(found, dict) else found
        waiting += [one for one in inner if isinstance(one, str | list | tuple | dict)]
    return size


def _to_json(value: Any, indent: int | None = None) -> str:
    # As transformers does it: the filter of Jinja would escape what HTML does not like.
    _size(value)
    return json.dumps(value, ensure_ascii=False, indent=None if indent is None else min(int(indent), 8))


def _refuse(message: str) -> None:
    raise SecurityError(str(message)[:200])


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        source: Jinja.
        tokens: `bos_token`, `eos_token`, ... as texts.

    Raises:
        TemplateError: It is no template, or one that is too long.
    """

    def __init__(self, source: str, tokens: dict[str, str]) -> None:
        if len(source) > _MOST_SOURCE:
            raise TemplateError(f"it has more than {_MOST_SOURCE} characters")
        self.source = source
        self.tokens = tokens
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(source)
        except (JinjaError, RecursionError) as error:
            raise TemplateError(str(error)) from None

    def render(self, messages: Sequence[Message], *, prompt: bool = False, bare: bool = False) -> str:
        """A conversation as text.

        Args:
            prompt: whether the beginning of an answer comes at the end.
            bare: without special tokens.

        Raises:
            TemplateError: The template refuses the conversation, fails, or does too much.
        """
        self._environment.left = _BUDGET
        tokens = dict.fromkeys(self.tokens, "") if bare else self.tokens
        shown = [{name: value for name, value in message.items() if name != "weight"} for message in messages]
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                messages=shown, add_generation_prompt=prompt, tools=None, documents=None, **tokens
            ):
                pieces.append(piece)
                size += len(piece)
                if size > _MOST_SIZE:
                    raise SecurityError(f"it makes more than {_MOST_SIZE} characters")
        except (
            JinjaError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            RecursionError,
            AttributeError,
        ) as error:
            raise TemplateError(str(error) or type(error).__name__) from None
        return "".join(pieces)

    def segments(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """A conversation up to its last answer, cut where answers begin and end.

        Returns:
            Texts, and of each whether it is to be learned. Joined they are what `render` gives.

        Raises:
            TemplateError: A template changes what it wrote before, so that an answer does not follow its prompt.
        """
        segments: list[tuple[str, bool]] = []
        seen = ""
        for at, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt, whole = self.render(messages[:at], prompt=True), self.render(messages[: at + 1])
            if not prompt.startswith(seen) or not whole.startswith(prompt):
                raise TemplateError(f"it does not render message {at} as the answer to the messages before it")
            segments += [(prompt[len(seen) :], False), (whole[len(prompt) :], counts(message))]
            seen = whole
        return [segment for segment in segments if segment[0]]

    def renders_turns(self) -> bool:
        """Whether it shows each turn of a conversation, and not its last message alone."""
        roles = ("user", "assistant") * 2
        try:
            shown = self.render([{"role": role, "content": text} for role, text in zip(roles, _PROBE, strict=True)])
        except TemplateError:
            return False
        return all(text in shown for text in _PROBE)


def own_template(opening: str | None = None, ending: str | None = None) -> ChatTemplate:
    """The template of tokenizers that are made here, or of a base model that brings none.

    Args:
        opening, ending: what begins a prompt and ends an answer of that base. They are written out, as a server knows
            no name for them in every family; None: `bos_token` and `eos_token`.
    """
    source = CONVERSATION_TEMPLATE
    for name, text in (("bos_token", opening), ("eos_token", ending)):
        source = source if text is None else source.replace(name, json.dumps(text))
    return ChatTemplate(source, {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD})


def template_of(store: BlobStore, manifest_digest: str) -> ChatTemplate | None:
    """The template of a model version; None for a model that has none, or none for conversations.

    Raises:
        EngineError: CONTENT_INVALID, it is no template that can be run.
    """
    entries = {entry["path"]: entry["sha256"] for entry in store.load_manifest_sync(manifest_digest)["blobs"]}
    config: dict[str, Any] = {}
    if "tokenizer_config.json" in entries:
        config = json.loads(store.read_sync(entries["tokenizer_config.json"]))
    source = config.get("chat_template")
    if "chat_template.jinja" in entries:
        source = store.read_sync(entries["chat_template.jinja"]).decode("utf-8", "replace")
    if not isinstance(source, str):
        return None
    tokens = {name: _token(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    try:
        template = ChatTemplate(source, tokens)
    except TemplateError as error:
        message = f"The chat template of the base model cannot be used: {error}."
        raise EngineError("CONTENT_INVALID", message, detail="chat_template") from None
    return template if template.renders_turns() else None


def _token(value: Any) -> str:
    """A special token, which is a text or an object with one."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
