"""Finding personal data in text by pattern: e-mail addresses, telephone numbers, card numbers."""

from __future__ import annotations

import re

# Bounded by RFC 5321 (local part 64, domain 255), so that no input makes the search quadratic.
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,8}\.[A-Za-z]{2,24}")
# International with a plus sign; North American; Chinese mobile. Not every row of digits: versions, dates and ids are
# no numbers.
_TELEPHONES = (
    re.compile(r"(?<![\w+])\+\d{1,3}[ -]?(?:\(\d{1,4}\)[ -]?)?\d{2,4}(?:[ -]?\d{2,4}){1,4}(?![\w-])"),
    re.compile(r"(?<![\w(.-])(?:\(\d{3}\) ?|\d{3}-)\d{3}-\d{4}(?![\w-])"),
    re.compile(r"(?<!\d)1[3-9]\d{9}(?!\d)"),
)
_DIGIT = re.compile(r"\d\D?\d\D?\d\D?\d")
_CARD = re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d.-])")


def find_personal_data(text: str) -> str | None:
    """What kind of personal data the text holds first, or None. The finding itself is not repeated: it would end up
    in reports."""
    if "@" in text and _EMAIL.search(text):
        return "an e-mail address"
    for match in _CARD.finditer(text):
        if luhn_valid(match[0]):
            return "a card number with a valid check digit"
    if any(pattern.search(text) for pattern in _TELEPHONES):
        return "a telephone number"
    return None


def mask_personal_data(text: str) -> str:
    """The text with a placeholder for each finding."""
    if "@" in text:
        text = _EMAIL.sub("<email>", text)
    if _DIGIT.search(text):
        text = _CARD.sub(lambda found: "<card>" if luhn_valid(found[0]) else found[0], text)
        for pattern in _TELEPHONES:
            text = pattern.sub("<telephone>", text)
    return text


def luhn_valid(digits: str) -> bool:
    """Whether the digits (other characters are ignored) end in a valid check digit (ISO/IEC 7812-1, annex B)."""
    total = 0
    for at, character in enumerate(character for character in reversed(digits) if character.isdigit()):
        value = int(character) * (2 if at % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0
