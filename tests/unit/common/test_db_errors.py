"""What failures of PostgreSQL become."""

from __future__ import annotations

import asyncpg
import pytest
from sqlalchemy import exc

from libs.common.db.errors import sqlstate_of, translate

CASES = [
    ("23505", "ALREADY_EXISTS"),
    ("40001", "CONFLICT"),
    ("40P01", "CONFLICT"),
    ("55P03", "CONFLICT"),
    ("57014", "DEADLINE_EXCEEDED"),
    ("53100", "STORAGE_FULL"),
    ("53300", "DATABASE_UNAVAILABLE"),
    ("57P01", "DATABASE_UNAVAILABLE"),
    ("57P03", "DATABASE_UNAVAILABLE"),
    ("08006", "DATABASE_UNAVAILABLE"),
    ("22021", "INVALID_FIELD"),
    ("22P05", "INVALID_FIELD"),
    ("42601", None),
    ("23502", None),
]


@pytest.mark.parametrize(("sqlstate", "reason"), CASES)
def test_a_sqlstate_has_one_reason(sqlstate: str, reason: str | None) -> None:
    failure = asyncpg.PostgresError("secret detail")
    failure.sqlstate = sqlstate  # type: ignore[attr-defined]
    wrapped = exc.DBAPIError("SELECT secret", None, failure)
    error = translate(wrapped)
    assert (error.reason if error else None) == reason
    if error is not None:
        assert sqlstate_of(error) == sqlstate
        assert "secret" not in error.message


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionRefusedError(111, "refused"),
        ConnectionResetError(),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        OSError(113, "no route"),
    ],
)
def test_a_broken_connection_is_unavailability(failure: Exception) -> None:
    error = translate(failure)
    assert error is not None
    assert error.reason == "DATABASE_UNAVAILABLE"


def test_a_busy_pool_is_overload() -> None:
    error = translate(exc.TimeoutError("QueuePool limit"))
    assert error is not None
    assert error.reason == "OVERLOADED"


def test_our_own_faults_stay_what_they_are() -> None:
    assert translate(TypeError("a bug")) is None
    assert translate(asyncpg.DataError("invalid input for query argument")) is None
