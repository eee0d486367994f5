"""Ids and resource names."""

from __future__ import annotations

import re
import secrets
import threading
import uuid
from collections.abc import Mapping

from libs.common.clock import SYSTEM_CLOCK
from libs.common.domain import DomainError

# RFC 1035 labels without upper case, as HOUSE section 3 and the protos have them; a leading digit is allowed.
_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MAX_ID = 63
# Lower-case Crockford base 32: sorts as its number does and has no letters that look like digits.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

_lock = threading.Lock()
_last = 0


def uuid7() -> str:
    """A UUID of version 7 (RFC 9562, 5.7): sorted by time, and strictly rising within this process."""
    global _last
    with _lock:
        # 48 bits of milliseconds, then 74 random bits whose carry keeps the order within one millisecond.
        fresh = int(SYSTEM_CLOCK.now().timestamp() * 1000) << 74 | secrets.randbits(73)
        _last = fresh if fresh > _last else _last + 1 + secrets.randbits(32)
        value = _last
    millis, random_a, random_b = value >> 74, value >> 62 & 0xFFF, value & (1 << 62) - 1
    return str(uuid.UUID(int=millis << 80 | 7 << 76 | random_a << 64 | 2 << 62 | random_b))


def resource_id(prefix: str = "") -> str:
    """An id for a resource that its creator did not name: `prefix-` and 16 characters that sort by time.

    Args:
        prefix: lower-case letters, digits and dashes, at most 46 characters.
    """
    number = uuid.UUID(uuid7()).int
    # 45 bits of milliseconds reach the year 3084; 35 random bits are enough beside a millisecond and a parent.
    value = (number >> 80 & (1 << 45) - 1) << 35 | number & (1 << 35) - 1
    text = "".join(_ALPHABET[value >> shift & 31] for shift in range(75, -1, -5))
    result = f"{prefix}-{text}" if prefix else text
    if _ID.fullmatch(result) is None or len(result) > _MAX_ID:
        raise ValueError(f"{prefix!r} is no prefix of an id")
    return result


class NamePattern:
    """The form of a resource name, such as `orgs/{org}/datasets/{dataset}`.

    Args:
        pattern: collections and `{variables}` in turn.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        parts = pattern.split("/")
        self.variables = tuple(part[1:-1] for part in parts if part.startswith("{"))
        form = "/".join(
            f"(?P<{part[1:-1]}>{_ID.pattern})" if part.startswith("{") else re.escape(part) for part in parts
        )
        self._regex = re.compile(form)

    def parse(self, name: str, field: str = "name") -> dict[str, str]:
        """The ids in a name. Raises INVALID_FIELD, naming `field`, if the name has another form."""
        match = self._regex.fullmatch(name)
        if match is None:
            raise DomainError("INVALID_FIELD", f"{field}: must look like {self.pattern}", field=field)
        return {variable: match[variable] for variable in self.variables}

    def matches(self, name: str) -> bool:
        """Whether a name has this form."""
        return self._regex.fullmatch(name) is not None

    def format(self, **ids: str) -> str:
        """The name with these ids. Raises INVALID_FIELD for an id that cannot stand in a name."""
        return self.pattern.format_map(_Checked(ids))


class _Checked(dict[str, str]):
    """Ids that are checked when they are used."""

    def __init__(self, ids: Mapping[str, str]) -> None:
        super().__init__(ids)

    def __getitem__(self, key: str) -> str:
        value = super().__getitem__(key)
        if _ID.fullmatch(value) is None:
            message = f"{key}: 1 to {_MAX_ID} lower-case letters, digits and dashes, no dash at the ends"
            raise DomainError("INVALID_FIELD", message, field=key)
        return value


def org_of(name: str) -> str:
    """The organization of a resource name. Raises INVALID_FIELD if it has none."""
    parts = name.split("/", 2)
    if len(parts) < 2 or parts[0] != "orgs" or _ID.fullmatch(parts[1]) is None:
        raise DomainError("INVALID_FIELD", "name: must begin with orgs/{org}", field="name")
    return parts[1]
