"""SQL expressions of recipes: which words and functions they may have.

The engine that runs them, polars, also knows subqueries, and those read files: `x IN (SELECT a FROM
read_csv('/etc/passwd'))` is an expression to it. So an expression is taken only if all its words are on a list, and if
no two operands stand side by side, which is how every query begins.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from libs.common.domain import invalid

LONGEST = 2000
# fmt: off
# Functions of one row that take time and memory in proportion to it. Aggregates are not here, because rows come in
# batches; nor is what can multiply a text (repeat, lpad, replace).
FUNCTIONS = frozenset((
    "abs", "ceil", "floor", "round", "sign", "sqrt", "exp", "ln", "log10", "power", "mod", "coalesce", "ifnull",
    "nullif", "greatest", "least", "if", "length", "char_length", "octet_length", "lower", "upper", "trim", "ltrim",
    "rtrim", "starts_with", "ends_with", "strpos", "left", "right", "substr", "reverse", "concat", "regexp_like",
    "cast", "try_cast",
))
# fmt: on
# Binary operators and what stands around operands. After these an operand is expected.
_JOINING = frozenset(("and", "or", "not", "is", "in", "like", "ilike", "between", "case", "when", "then", "else", "as"))
_CLOSING = frozenset(("end", "null", "true", "false"))
_TYPES = frozenset(("bigint", "double", "varchar", "boolean"))
_RESERVED = frozenset(("select", "from", "with", "table", "values", "over", "union"))
# The parser of polars tries each level of what it cannot read twice: at 60 levels it is never done.
_DEEPEST = 8
# Each makes a text longer by its operands, so a text grows at most so many times.
_MOST_JOINS = 16
_TOKEN = re.compile(
    r"""(?P<space>[ \t\n]+)
    | (?P<text>'(?:[^'\x00]|'')*')
    | (?P<quoted>"[^"\x00]+")
    | (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<comment>--|/\*)
    | (?P<operator>\|\||<=|>=|<>|!=|[-+*/%<>=(),])""",
    re.VERBOSE,
)


class _Token(NamedTuple):
    kind: str
    text: str

    @property
    def word(self) -> str:
        """The bare word in lower case; empty for anything else."""
        return self.text.lower() if self.kind == "word" else ""


def check_expression(text: str, field: str) -> None:
    """Raises INVALID_FIELD, naming `field`, for what an expression may not have."""
    if len(text) > LONGEST:
        raise invalid(field, f"is longer than {LONGEST} characters")
    tokens = _tokens(text, field)
    if not tokens:
        raise invalid(field, "is empty")
    joins = sum(token.text == "||" or token.word == "concat" for token in tokens)
    commas = sum(token.text == "," for token in tokens) if "concat" in [token.word for token in tokens] else 0
    if joins + commas > _MOST_JOINS:
        raise invalid(field, f"joins more than {_MOST_JOINS} texts")
    for token, following in zip(tokens, [*tokens[1:], _Token("end", "")], strict=True):
        _check_word(token, following, field)
        if _ends_operand(token) and _begins_operand(following) and not _is_call(token, following):
            raise invalid(field, f"{following.text[:64]!r} cannot follow {token.text[:64]!r}")
    _check_nesting(tokens, field)
    if not expression_columns(text):
        raise invalid(field, "names no column")


def expression_columns(text: str) -> list[str]:
    """Columns that a checked expression names, in order of first appearance."""
    tokens = _tokens(text, "")
    names = [token.text.strip('"') for token in tokens if token.kind == "quoted" or _is_column(token)]
    return list(dict.fromkeys(names))


def _tokens(text: str, field: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup is None or found.lastgroup == "comment":
            problem = f"has {text[position : position + 10]!r} at character {position + 1}"
            raise invalid(field, f"{problem}, which no expression may have; other names stand in double quotes")
        if found.lastgroup != "space":
            tokens.append(_Token(found.lastgroup, found[0]))
        position = found.end()
    return tokens


def _check_nesting(tokens: list[_Token], field: str) -> None:
    """Brackets and CASE close what they opened, and are not nested too deeply."""
    opened: list[str] = []
    for token in tokens:
        if token.text == "(" or token.word == "case":
            opened.append(")" if token.text == "(" else "end")
        elif token.text == ")" or token.word == "end":
            closing = opened.pop() if opened else ""
            if closing != (token.word or token.text):
                raise invalid(field, f"has {token.text!r} where {closing or 'nothing'!r} should close")
        if len(opened) > _DEEPEST:
            raise invalid(field, f"nests brackets and CASE deeper than {_DEEPEST}")
    if opened:
        raise invalid(field, f"ends where {opened[-1]!r} is missing")


def _is_column(token: _Token) -> bool:
    return bool(token.word) and token.word not in FUNCTIONS | _JOINING | _CLOSING | _TYPES


def _is_call(token: _Token, following: _Token) -> bool:
    return token.word in FUNCTIONS and following.text == "("


def _check_word(token: _Token, following: _Token, field: str) -> None:
    """A word before a bracket is a function that is allowed, and such a function stands before a bracket."""
    calls = following.text == "(" and token.kind in ("word", "quoted") and token.word not in _JOINING
    if calls and token.word not in FUNCTIONS:
        problem = f"{token.text[:64]!r} is no function that it may use; there are {', '.join(sorted(FUNCTIONS))}"
        raise invalid(field, problem)
    if token.word in _RESERVED or (token.word in FUNCTIONS and not calls):
        raise invalid(field, f"{token.text!r} is a word of SQL; a column of this name stands in double quotes")


def _ends_operand(token: _Token) -> bool:
    is_value = token.kind in ("number", "text", "quoted") or token.text == ")"
    return is_value or bool(token.word and token.word not in _JOINING)


def _begins_operand(token: _Token) -> bool:
    is_value = token.kind in ("number", "text", "quoted") or token.text == "("
    return is_value or token.word == "case" or bool(token.word and token.word not in _JOINING | _CLOSING)
