"""Numbers and the texts of them: files of CSV and TSV hold texts only, and a version the numbers that they are."""

from __future__ import annotations

import math
import re
from decimal import Decimal

from libs.compute.versions import to_json

# A text that says more than its number (`007`, `+1`) is none.
INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
# Integers up to here are exact as IEEE 754 doubles (RFC 8785 takes the same bound).
_MAX_EXACT = 2**53


def is_double(text: str) -> bool:
    """Whether a double is this number, to its last digit."""
    number = float(text)
    return math.isfinite(number) and Decimal(repr(number)) == Decimal(text)


def number_or_text(text: str) -> str:
    """A text that is a number as that number is written (`1.50` as `1.5`, `3.0` as `3`); any other text as it is.

    The same column may be numbers in one file and texts in another one, of which a single cell is none.
    """
    if INTEGER.fullmatch(text):
        return str(int(text))
    if DECIMAL.fullmatch(text) and is_double(text):
        number = float(text)
        return str(int(number)) if number.is_integer() and abs(number) <= _MAX_EXACT else to_json(number)
    return text
