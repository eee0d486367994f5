"""Server-sent events as a gateway writes them (html.spec.whatwg.org, 9.2)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `id` is where to resume; `kind` is empty for a plain message."""

    data: str
    id: str
    kind: str


class EventParser:
    """Turns lines into events."""

    def __init__(self) -> None:
        self._data: list[str] = []
        self._id = ""
        self._kind = ""

    def feed(self, line: str) -> Event | None:
        """Takes one line without its end; gives the event that it completes."""
        if not line:
            if not self._data:
                return None
            event = Event("\n".join(self._data), self._id, self._kind)
            self._data, self._kind = list[str](), ""
            return event
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "id":
            self._id = value
        elif field == "event":
            self._kind = value
        return None
