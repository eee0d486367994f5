"""What runs are searched by, whoever started them: attributes, parameters, tags, newest values of metrics."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from libs.common.domain import invalid
from services.training.domain.runs import RunState

# Milliseconds since 1970.
TIMES = ("start_time", "end_time")
ATTRIBUTES = ("name", "state", "display_name", "creator", *TIMES)
_OF_NUMBERS = ("=", "!=", "<", "<=", ">", ">=")
_OF_TEXTS = ("=", "!=", "LIKE", "ILIKE", "IN", "NOT IN")


class Field(StrEnum):
    """Where a value is looked for."""

    ATTRIBUTE = "ATTRIBUTE"
    PARAMETER = "PARAMETER"
    TAG = "TAG"
    METRIC = "METRIC"


@dataclass(frozen=True)
class Condition:
    """What a run must be like.

    Attributes:
        key: of the parameter, tag or metric, or the name of the attribute.
        operator: `=`, `!=`, `<`, `<=`, `>`, `>=`, `LIKE`, `ILIKE`, `IN`, `NOT IN`.
        texts: to compare with.
        number: to compare with, where a number is compared.
    """

    field: Field
    key: str
    operator: str
    texts: tuple[str, ...] = ()
    number: float = 0.0

    @property
    def numeric(self) -> bool:
        """Whether a number is compared."""
        return self.field is Field.METRIC or (self.field is Field.ATTRIBUTE and self.key in TIMES)

    def check(self, where: str) -> None:
        """Raises INVALID_FIELD that names `where` for what no run can meet."""
        if self.field is Field.ATTRIBUTE and self.key not in ATTRIBUTES:
            raise invalid(f"{where}.key", f"there is no attribute {self.key!r}; there are {', '.join(ATTRIBUTES)}")
        allowed = _OF_NUMBERS if self.numeric else _OF_TEXTS
        if self.operator not in allowed:
            kind = "a number" if self.numeric else "a text"
            raise invalid(f"{where}.operator", f"{self.key} is {kind}, which has {', '.join(allowed)}")
        if self.numeric and self.texts:
            raise invalid(f"{where}.texts", f"{self.key} is a number")
        if not self.numeric and len(self.texts) != 1 and self.operator not in ("IN", "NOT IN"):
            raise invalid(f"{where}.texts", f"{self.operator} takes one text")
        if self.field is Field.ATTRIBUTE and self.key == "state":
            unknown = [text for text in self.texts if text not in RunState.__members__]
            if unknown and not self.operator.endswith("LIKE"):
                raise invalid(f"{where}.texts", f"{unknown[0][:100]!r} is no state; there are {', '.join(RunState)}")


@dataclass(frozen=True)
class Order:
    """What runs are sorted by."""

    field: Field
    key: str
    descending: bool

    def check(self, where: str) -> None:
        """Raises INVALID_FIELD that names `where`."""
        if self.field is Field.ATTRIBUTE and self.key not in ATTRIBUTES:
            raise invalid(f"{where}.key", f"there is no attribute {self.key!r}; there are {', '.join(ATTRIBUTES)}")
