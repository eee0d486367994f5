"""The catalogue, and errors on their way over the wire."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from argosy.common.v1 import error_reason_pb2
from google.rpc import error_details_pb2, status_pb2

from libs.common import errors
from libs.common.domain import DomainError
from libs.common.errors import ArgosyError, from_status, reason_of, to_status
from libs.common.rpc.translate import translate

REASONS = [value for value in error_reason_pb2.ErrorReason.DESCRIPTOR.values if value.number]


@pytest.mark.parametrize("value", REASONS, ids=lambda value: value.name)
def test_every_reason_survives_the_wire(value) -> None:  # type: ignore[no-untyped-def]
    error = ArgosyError(value.number, "Message.", metadata={"a": "b"}, violations=[("f", "d")])
    back = from_status(status_pb2.Status.FromString(to_status(error, "req-1").SerializeToString()))
    assert (back.number, back.code, back.message) == (value.number, error.code, "Message.")
    assert (back.metadata, back.violations, back.request_id) == ({"a": "b"}, [("f", "d")], "req-1")
    assert back.retry_after == error.retry_after
    assert error.code is not grpc.StatusCode.OK
    assert error.code is not grpc.StatusCode.UNKNOWN


def test_catalogue_is_looked_up_by_name_and_number() -> None:
    assert reason_of("NOT_FOUND") is reason_of("ERROR_REASON_NOT_FOUND") is reason_of(10)
    with pytest.raises(KeyError):
        reason_of("NO_SUCH_REASON")


def test_retry_info_stands_where_waiting_helps() -> None:
    kinds = [detail.TypeName() for detail in to_status(ArgosyError("OVERLOADED", "busy")).details]
    assert error_details_pb2.RetryInfo.DESCRIPTOR.full_name in kinds
    kinds = [detail.TypeName() for detail in to_status(errors.not_found("x")).details]
    assert error_details_pb2.RetryInfo.DESCRIPTOR.full_name not in kinds


def test_hostile_values_do_not_fill_the_headers() -> None:
    metadata = {f"name{number}": "\U0001f600" * 10**6 for number in range(99)}
    error = ArgosyError("NOT_FOUND", "x" * 10**6, metadata=metadata, violations=[("é" * 9999, "é" * 9999)] * 999)
    assert to_status(error, "r" * 64).ByteSize() < 6_000


def test_status_of_somebody_else() -> None:
    assert from_status(status_pb2.Status(code=5, message="nope")).reason == "NOT_FOUND"
    foreign = status_pb2.Status(code=14)
    foreign.details.add().Pack(error_details_pb2.ErrorInfo(reason="NOT_FOUND", domain="example.com"))
    assert from_status(foreign).reason == "PEER_UNAVAILABLE"
    newer = status_pb2.Status(code=9)
    newer.details.add().Pack(error_details_pb2.ErrorInfo(reason="FROM_THE_FUTURE", domain="argosy.dev"))
    assert from_status(newer).reason == "STATE_CONFLICT"


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (DomainError("NOT_FOUND", "no", name="n"), "NOT_FOUND"),
        (DomainError("NO_SUCH_REASON", "no"), "INTERNAL"),
        (TimeoutError(), "DEADLINE_EXCEEDED"),
        (asyncio.CancelledError(), "CANCELLED"),
        (ValueError("secret"), "INTERNAL"),
    ],
)
def test_exceptions_become_errors(failure: BaseException, reason: str) -> None:
    error = translate(failure)
    assert error.reason == reason
    assert "secret" not in error.message


def test_domain_error_names_its_field() -> None:
    error = translate(DomainError("INVALID_FIELD", "must be short", field="display_name"))
    assert error.violations == [("display_name", "must be short")]
