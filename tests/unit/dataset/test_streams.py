"""What waits in a stream."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from libs.common.domain import DomainError
from services.dataset.domain.streams import MOST_PENDING_BYTES, ROLL_BYTES, Batch, Stream, Taken

NOW = datetime(2026, 11, 22, tzinfo=UTC)
SECOND = timedelta(seconds=1)
BATCH = Batch(40, 1_000, "0" * 64)


@pytest.fixture
def stream() -> Stream:
    name = "orgs/acme/datasets/logs/streams/live"
    return Stream(uid="s", name=name, create_time=NOW, update_time=NOW, roll_rows=100, roll_seconds=60)


def test_rows_wait_until_there_are_enough_or_the_first_is_old_enough(stream: Stream) -> None:
    stream.append(BATCH, NOW)
    assert stream.roll_time == NOW + 60 * SECOND
    stream.append(BATCH, NOW + 5 * SECOND)
    assert stream.roll_time == NOW + 60 * SECOND
    stream.append(BATCH, NOW + 9 * SECOND)
    assert stream.roll_time == NOW + 9 * SECOND
    stream.append(BATCH, NOW + 10 * SECOND)
    assert stream.roll_time == NOW + 9 * SECOND
    stream.roll("task", NOW + 10 * SECOND)
    assert (stream.pending_rows, stream.pending_bytes, stream.roll_time) == (0, 0, None)
    assert (stream.row_count, stream.roll_count, stream.task) == (160, 1, "task")
    stream.append(BATCH, NOW + 20 * SECOND)
    assert stream.roll_time == NOW + 80 * SECOND


def test_large_rows_do_not_wait_for_many(stream: Stream) -> None:
    stream.append(replace(BATCH, size=ROLL_BYTES), NOW)
    assert stream.roll_time == NOW


def test_no_more_may_wait_than_imports_get_through(stream: Stream) -> None:
    stream.append(replace(BATCH, size=MOST_PENDING_BYTES - 1_000), NOW)
    stream.append(BATCH, NOW)
    with pytest.raises(DomainError) as caught:
        stream.append(BATCH, NOW)
    assert (caught.value.reason, caught.value.metadata["state"]) == ("STATE_CONFLICT", "full")
    assert stream.row_count == 80


def test_what_can_be_rolled_and_what_deleted(stream: Stream) -> None:
    stream.require_pending(False)
    with pytest.raises(DomainError, match="no row waits"):
        stream.require_pending(True)
    stream.append(BATCH, NOW)
    stream.require_pending(True)
    with pytest.raises(DomainError, match="roll it first"):
        stream.require_pending(False)


ORIGIN = "LOGS 2026-11-22"


def taken(after: int, last: int, batch: Batch | None = BATCH, origin: str = ORIGIN, **more: Any) -> Taken:
    return Taken(origin, after, last, batch, **more)


def test_messages_of_a_source_are_taken_once_and_in_order(stream: Stream) -> None:
    stream.take(taken(0, 50, rejected=2, rejection="message 7 is no JSON object"), NOW)
    for wrong in (taken(0, 50), taken(0, 60), taken(49, 60), taken(51, 60)):
        with pytest.raises(DomainError) as caught:
            stream.take(wrong, NOW)
        assert caught.value.reason == "CONFLICT"
    stream.take(taken(50, 90), NOW)
    assert (stream.source_position, stream.row_count, stream.pending_rows) == (90, 80, 80)
    assert (stream.rejected_count, stream.last_rejection) == (2, "message 7 is no JSON object")


def test_messages_that_are_no_rows_move_the_position_alone(stream: Stream) -> None:
    stream.take(taken(0, 3, None, rejected=3, rejection="message 3 is no JSON object"), NOW)
    assert (stream.source_position, stream.rejected_count, stream.row_count) == (3, 3, 0)
    assert stream.roll_time is None


def test_messages_from_elsewhere_are_not_taken(stream: Stream) -> None:
    stream.require_origin(ORIGIN)
    stream.take(taken(0, 5), NOW)
    with pytest.raises(DomainError) as caught:
        stream.take(taken(5, 9, origin="LOGS 2026-11-23"), NOW)
    assert caught.value.reason == "STATE_CONFLICT"
    assert stream.source_position == 5


def test_no_message_is_taken_while_too_many_rows_wait(stream: Stream) -> None:
    stream.append(replace(BATCH, size=MOST_PENDING_BYTES), NOW)
    with pytest.raises(DomainError) as caught:
        stream.take(taken(0, 5), NOW)
    assert (caught.value.reason, stream.source_position) == ("STATE_CONFLICT", 0)


def test_nobody_sends_rows_where_a_source_gives_them(stream: Stream) -> None:
    stream.require_sent()
    stream.source_subject = "logs.>"
    with pytest.raises(DomainError, match=r"logs\.>"):
        stream.require_sent()


def test_what_waits_can_be_hastened(stream: Stream) -> None:
    stream.hasten(NOW)
    assert stream.roll_time is None
    stream.append(BATCH, NOW)
    stream.hasten(NOW + SECOND)
    assert stream.roll_time == NOW + SECOND
