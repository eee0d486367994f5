"""In whose name a replica is asked."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from libs.common.auth.principal import Principal

_REMEMBERED = 1000


@dataclass(slots=True)
class Caller:
    """A principal with the tokens for replicas that were issued in its name."""

    org: str
    subject: str
    role: int
    audience_tokens: dict[str, tuple[tuple[str, str], float]] = field(
        default_factory=dict[str, tuple[tuple[str, str], float]]
    )


class Callers:
    """The callers of late, so that not every answer needs a token of its own."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str, int], Caller] = OrderedDict()

    def of(self, principal: Principal) -> Caller:
        key = (principal.org, principal.subject, principal.role)
        caller = self._known.get(key)
        if caller is None:
            caller = self._known[key] = Caller(*key)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return caller
