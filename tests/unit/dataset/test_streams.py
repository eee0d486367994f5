"""What waits in a stream."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from libs.common.domain import DomainError
from services.dataset.domain.streams import MOST_PENDING_BYTES, ROLL_BYTES, Batch, Stream

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
