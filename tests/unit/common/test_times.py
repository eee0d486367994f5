"""Times that are none are found wherever they stand."""

from __future__ import annotations

import pytest
from argosy.dataset.v1 import dataset_service_pb2
from argosy.identity.v1 import token_service_pb2, usage_service_pb2

from libs.common.rpc.times import time_checker

_LAST = 253_402_300_799


@pytest.mark.parametrize(
    ("seconds", "nanos", "right"),
    [
        (0, 0, True),
        (-62_135_596_800, 999_999_999, True),
        (_LAST, 0, True),
        (_LAST + 1, 0, False),
        (1 << 62, 0, False),
        (0, -1, False),
        (0, 1_000_000_000, False),
    ],
)
def test_a_time(seconds: int, nanos: int, right: bool) -> None:
    request = token_service_pb2.WatchRevocationsRequest()
    request.since.seconds, request.since.nanos = seconds, nanos
    check = time_checker(request.DESCRIPTOR)
    assert check is not None
    assert [field for field, _ in check(request)] == ([] if right else ["since"])


def test_times_inside_lists_are_named() -> None:
    request = usage_service_pb2.RecordUsageRequest()
    request.entries.add().time.seconds = 1
    request.entries.add().time.seconds = 1 << 60
    check = time_checker(request.DESCRIPTOR)
    assert check is not None
    assert [field for field, _ in check(request)] == ["entries[1].time"]


def test_requests_without_times_pay_nothing() -> None:
    assert time_checker(dataset_service_pb2.GetDatasetRequest.DESCRIPTOR) is None
