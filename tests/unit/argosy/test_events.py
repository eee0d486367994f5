"""Server-sent events, line by line."""

from __future__ import annotations

from argosy.client.events import Event, EventParser


def _parse(text: str) -> list[Event]:
    parser = EventParser()
    return [event for line in text.split("\n") if (event := parser.feed(line))]


def test_comments_and_empty_events_are_nothing() -> None:
    assert _parse(": keep-alive\n\n\n\n") == []


def test_data_of_several_lines_is_one_event() -> None:
    assert _parse("data: a\ndata: b\n\n") == [Event("a\nb", "", "")]


def test_an_id_holds_until_the_next_one_but_a_kind_does_not() -> None:
    assert _parse("id: 7\nevent: error\ndata: a\n\ndata: b\n\n") == [Event("a", "7", "error"), Event("b", "7", "")]
