"""Numbers in files that hold texts only (CSV, TSV): a column is numbers if each of its values reads as one.

A text that says more than its number stays a text, and its column with it: `007`, `+1`, `1,5`, and what has more digits
than its number would. Only zeros at the end of a fraction are not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from libs.compute.numbers import DECIMAL, INTEGER, is_double
from services.dataset.engines.lines import Line

# Every integer of so many digits is a double.
_EXACT_DIGITS = 15

# Makes its number of the text of a cell.
Number = Callable[[str], int | float]


def number_columns(lines: Iterable[Line]) -> dict[str, Number]:
    """The columns of a table whose values are all numbers: `int`, or `float` where one has a fraction."""
    kinds: dict[str, Number] = {}
    texts: set[str] = set()
    # Those that a double could not hold, if a fraction comes.
    wide: set[str] = set()
    for line in lines:
        for name, text in (line.row or {}).items():
            if name in texts:
                continue
            if INTEGER.fullmatch(text):
                kinds.setdefault(name, int)
                if len(text) > _EXACT_DIGITS and not is_double(text):
                    wide.add(name)
            elif DECIMAL.fullmatch(text) and is_double(text):
                kinds[name] = float
            else:
                texts.add(name)
            if name in wide and kinds.get(name) is float:
                texts.add(name)
    return {name: number for name, number in kinds.items() if name not in texts}


def with_numbers(line: Line, numbers: dict[str, Number]) -> Line:
    """The line with the columns of `numbers` as numbers."""
    if line.row is None:
        return line
    row = {name: numbers[name](value) if name in numbers else value for name, value in line.row.items()}
    return Line(line.number, row, line.error)
