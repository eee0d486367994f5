"""The operators of cleaning recipes: their names, their parameters, and where their thresholds come from.

How they work is in `services.dataset.engines`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from libs.common.domain import invalid
from services.dataset.domain.expressions import check_expression
from services.dataset.domain.fields import as_list
from services.dataset.domain.functions import check_function

Kind = Literal[
    "count", "share", "number", "choice", "texts", "name", "column", "columns", "value", "expression", "function"
]
# What one parameter of kind `texts` takes.
_MOST_TEXTS, _LONGEST_TEXT = 10_000, 200
# As rows have them: columns of a recipe, and characters of a name.
_MOST_COLUMNS, _LONGEST_COLUMN = 1024, 128
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
# What drops rows that a recipe makes too large; no operator.
ROW_SIZE = "row_size"
# Readers of a version add these to each row.
PROVENANCE = ("row_id", "source", "position")


@dataclass(frozen=True)
class Parameter:
    """One parameter of an operator.

    Attributes:
        name: as in the recipe.
        kind: `count` (whole number from 0), `share` (0 to 1), `number` (from 0), `choice`, `texts`, `name`, `column`,
            `columns`, `value` (text, number, true or false), `expression` (SQL), `function` (Python).
        default: None: off, or, without `optional`, to be given.
        description: one sentence.
        choices: of a `choice`.
        optional: null switches the limit off.
        least, most: bounds of a number.
    """

    name: str
    kind: Kind
    default: Any
    description: str
    choices: tuple[str, ...] = ()
    optional: bool = True
    least: float = 0
    # Beyond it a number has no neighbours, and a whole one may be too large for a float.
    most: float = 2**53

    def read(self, value: object, field: str) -> Any:
        """The value as engines take it. Raises INVALID_FIELD, naming the field."""
        if value is None:
            if self.optional:
                return None
            raise invalid(field, "is missing")
        if self.kind in _READERS:
            return _READERS[self.kind](value, field)
        if self.kind == "choice":
            if value not in self.choices:
                raise invalid(field, f"is one of {', '.join(self.choices)}")
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= self.most:
            raise invalid(field, "is a number" if self.most == 2**53 else f"is a number up to {self.most:g}")
        if self.kind == "count" and value != int(value):
            raise invalid(field, "is a whole number")
        if value < self.least or (self.kind == "share" and value > 1):
            raise invalid(field, "lies between 0 and 1" if self.kind == "share" else f"is {self.least:g} or more")
        return int(value) if self.kind == "count" else float(value)


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        name: as in the recipe and the report.
        description: what it does to a row.
        source: where its thresholds come from; empty for our own.
        parameters: in the order of the documentation.
        pairs: it compares rows with each other, so it comes after all that look at one row.
    """

    name: str
    description: str
    source: str = ""
    parameters: tuple[Parameter, ...] = ()
    pairs: bool = False

    def read(self, given: Mapping[object, object], field: str) -> dict[str, Any]:
        """All parameters by name, defaults filled in. Raises INVALID_FIELD, naming the parameter."""
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in given:
            if name not in known:
                problem = f"is no parameter of {self.name}; it has {', '.join(known) or 'none'}"
                raise invalid(f"{field}.{str(name)[:64]}", problem)
        read = {
            name: parameter.read(given.get(name, parameter.default), f"{field}.{name}")
            for name, parameter in known.items()
        }
        for name, least in read.items():
            most = read.get(f"max_{name.removeprefix('min_')}") if name.startswith("min_") else None
            if least is not None and most is not None and most < least:
                raise invalid(f"{field}.max_{name.removeprefix('min_')}", f"is less than {name}, which is {least:g}")
        return read


def _texts(value: object, field: str) -> list[str]:
    listed = as_list(value)
    texts = [one for one in listed or () if isinstance(one, str) and one.strip()]
    if not listed or len(texts) < len(listed):
        raise invalid(field, "is a list of texts")
    if len(texts) > _MOST_TEXTS or any(len(one) > _LONGEST_TEXT for one in texts):
        raise invalid(field, f"holds at most {_MOST_TEXTS} texts of at most {_LONGEST_TEXT} characters")
    return texts


def _name(value: object, field: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise invalid(field, "is a name of at most 64 small letters, digits, hyphens and underscores")
    if value in OPERATORS or value == ROW_SIZE:
        raise invalid(field, f"{value} is the name of another rule")
    return value


def _column(value: object, field: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= _LONGEST_COLUMN or "\x00" in value:
        raise invalid(field, f"is the name of a column, of 1 to {_LONGEST_COLUMN} characters")
    if value in PROVENANCE:
        raise invalid(field, f"{value} says where a row comes from; recipes do not change it")
    return value


def _columns(value: object, field: str) -> list[str]:
    listed = as_list(value)
    if not listed or len(listed) > _MOST_COLUMNS:
        raise invalid(field, f"is a list of 1 to {_MOST_COLUMNS} columns")
    columns = [_column(one, f"{field}[{number}]") for number, one in enumerate(listed)]
    for number, column in enumerate(columns):
        if column in columns[:number]:
            raise invalid(f"{field}[{number}]", f"{column} is there twice")
    return columns


def _value(value: object, field: str) -> str | bool | int | float:
    # Beyond 2^53 a number has no neighbours; a text of a table's cell is short.
    is_number = isinstance(value, int | float) and abs(value) <= 2**53
    if not is_number and not (isinstance(value, str) and len(value) <= _LONGEST_TEXT):
        raise invalid(field, f"is a number, true, false, or a text of at most {_LONGEST_TEXT} characters")
    assert isinstance(value, str | bool | int | float)
    return value


def _expression(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise invalid(field, "is an SQL expression")
    check_expression(value, field)
    return value


def _function(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise invalid(field, "is a Python function `def row(row)`")
    check_function(value, field)
    return value


_READERS: dict[str, Callable[[object, str], Any]] = {
    "texts": _texts,
    "name": _name,
    "column": _column,
    "columns": _columns,
    "value": _value,
    "expression": _expression,
    "function": _function,
}


_GOPHER = "Gopher, arXiv 2112.11446, appendix A1.1"
_C4 = "C4, arXiv 1910.10683, section 2.2"
_FINEWEB = "FineWeb, arXiv 2406.17557, section 3.6"
_ROOTS = "The BigScience ROOTS corpus, arXiv 2303.03915, appendix"


def _share(name: str, default: float | None, description: str) -> Parameter:
    return Parameter(name, "share", default, description)


def _count(name: str, default: int | None, description: str) -> Parameter:
    return Parameter(name, "count", default, description)


def _needed(name: str, kind: Kind, description: str) -> Parameter:
    return Parameter(name, kind, None, description, optional=False)


def _chosen(name: str, choices: tuple[str, ...], description: str) -> Parameter:
    return Parameter(name, "choice", choices[0], description, choices, optional=False)


_REPORTED = Parameter("name", "name", None, "Name in the report; null: that of the operator.")
_COLUMNS = _needed("columns", "columns", "Columns of the version.")

_ALL = (
    Operator("html", "Takes HTML tags, comments, scripts and styles out, and decodes entities."),
    Operator(
        "normalise",
        "Unicode normal form, line feeds only, no blanks before a line's end, at most one empty line, nothing around.",
        parameters=(
            Parameter("form", "choice", "NFC", "Unicode normal form.", choices=("NFC", "NFKC"), optional=False),
        ),
    ),
    Operator(
        "to_simplified",
        "Writes traditional Chinese in simplified characters, word by word where a word needs it.",
        "OpenCC, configuration t2s",
    ),
    Operator(
        "length",
        "Drops texts that are shorter or longer.",
        parameters=(
            _count("min_chars", 20, "Least number of characters."),
            _count("max_chars", 100_000, "Largest number of characters."),
        ),
    ),
    Operator(
        "words",
        "Drops texts with fewer or more words; of East Asian scripts each character is a word.",
        parameters=(
            _count("min_words", 3, "Least number of words."),
            _count("max_words", None, "Largest number of words."),
        ),
    ),
    Operator(
        "letters",
        "Drops texts with a smaller share of letters among the characters that are not white space.",
        parameters=(_share("min_share", 0.5, "Least share."),),
    ),
    Operator(
        "symbols",
        "Drops texts with more hash signs and ellipses a word.",
        _GOPHER,
        (Parameter("max_per_word", "number", 0.1, "Largest number a word."),),
    ),
    Operator(
        "repeated_line",
        "Drops texts of four lines or more in which one line makes a larger share of the lines.",
        parameters=(_share("max_share", 0.3, "Largest share."),),
    ),
    Operator(
        "line_lengths",
        "Drops texts whose lines are too short or too long.",
        _ROOTS,
        (
            Parameter("min_mean", "number", 10, "Least mean length of a line in characters."),
            _count("min_longest", 10, "Least length of the longest line."),
            _count("max_longest", None, "Largest length of the longest line."),
        ),
    ),
    Operator(
        "special_characters",
        "Drops texts with a larger share of characters that are neither letters nor part of one: digits, punctuation, "
        "white space, symbols.",
        _ROOTS,
        (_share("max_share", 0.25, "Largest share."),),
    ),
    Operator(
        "word_repetition",
        "Drops texts in which a larger share of the runs of words comes more than once.",
        _ROOTS,
        (
            Parameter("run", "count", 10, "Words of a run.", optional=False),
            _share("max_share", 0.5, "Largest share."),
        ),
    ),
    Operator(
        "character_repetition",
        "Drops texts in which the most frequent runs of characters (the square root of their number) make a larger "
        "share of all.",
        _ROOTS,
        (
            Parameter("run", "count", 10, "Characters of a run.", optional=False),
            _share("max_share", 0.5, "Largest share."),
        ),
    ),
    Operator(
        "gopher_quality",
        "Drops texts that do not read like prose.",
        _GOPHER,
        (
            _count("min_words", 50, "Least number of words."),
            _count("max_words", 100_000, "Largest number of words."),
            Parameter("min_mean_word", "number", 3, "Least mean length of a word in characters."),
            Parameter("max_mean_word", "number", 10, "Largest mean length of a word in characters."),
            Parameter("max_symbols_per_word", "number", 0.1, "Largest number of hash signs, or of ellipses, a word."),
            _share("max_bullet_lines", 0.9, "Largest share of lines that begin with a bullet."),
            _share("max_ellipsis_lines", 0.3, "Largest share of lines that end with an ellipsis."),
            _share("min_words_with_letter", 0.8, "Least share of words with a letter."),
            _count("min_stop_words", 2, "Least number of different stop words."),
        ),
    ),
    Operator(
        "gopher_repetition",
        "Drops texts that repeat themselves.",
        f"{_GOPHER}, table A1",
        (
            _share("max_duplicate_lines", 0.30, "Largest share of lines that came before."),
            _share("max_duplicate_paragraphs", 0.30, "Largest share of paragraphs that came before."),
            _share("max_duplicate_line_chars", 0.20, "Largest share of characters in such lines."),
            _share("max_duplicate_paragraph_chars", 0.20, "Largest share of characters in such paragraphs."),
            _share("max_top_2_gram", 0.20, "Largest share of characters in the most frequent run of 2 words."),
            _share("max_top_3_gram", 0.18, "The same for 3 words."),
            _share("max_top_4_gram", 0.16, "The same for 4 words."),
            _share("max_duplicate_5_gram", 0.15, "Largest share of characters in runs of 5 words that came before."),
            _share("max_duplicate_6_gram", 0.14, "The same for 6 words."),
            _share("max_duplicate_7_gram", 0.13, "The same for 7 words."),
            _share("max_duplicate_8_gram", 0.12, "The same for 8 words."),
            _share("max_duplicate_9_gram", 0.11, "The same for 9 words."),
            _share("max_duplicate_10_gram", 0.10, "The same for 10 words."),
        ),
    ),
    Operator(
        "c4_quality",
        "Keeps the lines that are sentences, without citation marks; drops texts with filler or code, and those with "
        "few sentences left.",
        _C4,
        (
            _count("min_sentences", 5, "Least number of sentences in the lines that stay."),
            _count("min_words_per_line", 3, "Lines with fewer words go."),
            _count("max_word_chars", 1000, "Lines with a longer word go."),
        ),
    ),
    Operator(
        "fineweb_quality",
        "Drops texts that are lists, menus or repeated lines.",
        _FINEWEB,
        (
            _share("min_terminal_lines", 0.12, "Least share of lines that end with a terminal mark."),
            _share("max_short_lines", 0.67, "Largest share of short lines."),
            Parameter("short_line_chars", "count", 30, "A line of so many characters is short.", optional=False),
            _share("max_duplicate_line_chars", 0.01, "Largest share of characters in lines that came before."),
            Parameter("max_breaks_per_word", "number", 0.3, "Largest number of line breaks a word."),
        ),
    ),
    Operator(
        "languages",
        "Drops texts in other languages, and those whose language is less certain, by their first 1,000 characters.",
        "langid.py, Lui and Baldwin, ACL 2012",
        (
            Parameter("keep", "texts", None, "Codes of ISO 639, such as en or zh.", optional=False),
            _share("min_probability", 0.5, "Least probability."),
        ),
    ),
    Operator(
        "banned_words",
        "Drops texts with one of these words or phrases, in any case.",
        parameters=(Parameter("words", "texts", None, "Words and phrases.", optional=False),),
    ),
    Operator(
        "personal_data",
        "E-mail addresses, telephone numbers, card numbers with a valid check digit.",
        parameters=(
            Parameter(
                "action", "choice", "mask", "Mask them, or drop the row.", choices=("mask", "drop"), optional=False
            ),
        ),
    ),
    Operator(
        "expression",
        "Keeps the rows for which an SQL expression over the columns is true; false and null drop the row.",
        parameters=(
            _needed("keep", "expression", "Such as `score > 0.5 AND length(text) < 9000`."),
            _REPORTED,
        ),
    ),
    Operator(
        "compute",
        "Sets a column to an SQL expression over the columns; null takes the value away.",
        parameters=(
            _needed("column", "column", "Column that is set; a new one is added."),
            _needed("value", "expression", "Such as `round(price * 1.19, 2)`."),
            _REPORTED,
        ),
    ),
    Operator(
        "python",
        "Calls a function `row(row)` of your own for every row, in a sandbox without network and files. It gives back "
        "the changed row, True to keep the row as it is now, or None or False to drop it.",
        parameters=(
            _needed("function", "function", "Source code with `def row(row)`; the row is a dict of its columns."),
            _chosen(
                "on_error", ("fail", "drop"), "Where it raises: the task fails and names the row, or the row goes."
            ),
            Parameter("max_seconds", "number", 10, "Largest time for one row.", optional=False, least=0.1, most=600),
            Parameter(
                "max_memory_mb", "count", 512, "Memory of its process in MiB.", optional=False, least=128, most=4096
            ),
            _REPORTED,
        ),
    ),
    Operator(
        "drop_missing",
        "Drops rows that have no value in one of these columns.",
        parameters=(_COLUMNS,),
    ),
    Operator(
        "impute",
        "Fills missing values. Mean, median and mode are those of the version as it comes in.",
        parameters=(
            _COLUMNS,
            _chosen("method", ("median", "mean", "mode", "constant"), "What is filled in."),
            Parameter("value", "value", None, "The constant."),
        ),
    ),
    Operator(
        "standardise",
        "Brings numbers to one scale, by figures of the version as it comes in.",
        parameters=(
            _COLUMNS,
            _chosen(
                "method",
                ("z_score", "min_max", "robust"),
                "(x - mean) / standard deviation; (x - least) / (largest - least); (x - median) / (third quartile - "
                "first quartile).",
            ),
        ),
    ),
    Operator(
        "exact_duplicates",
        "Drops all but the first of rows with the same text, white space and the script of Chinese aside.",
        pairs=True,
    ),
    Operator(
        "near_duplicates",
        "Drops all but the first of rows whose Jaccard similarity of word 5-shingles is at least this, Chinese in "
        "either script: candidates by MinHash, each verified exactly.",
        "Broder 1997; Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, section 3.4",
        (Parameter("threshold", "share", 0.8, "Least similarity.", optional=False),),
        pairs=True,
    ),
)
OPERATORS = {operator.name: operator for operator in _ALL}
