"""What a failure of PostgreSQL means to a caller. The only place that knows SQLSTATE codes.

Codes: PostgreSQL manual, appendix A.
"""

from __future__ import annotations

import asyncpg
from sqlalchemy import event, exc
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.common.domain import DomainError

# What a connection of asyncpg's own (LISTEN, advisory locks) raises when PostgreSQL goes. A shutdown that the driver
# reads between two commands leaves its state machine in one that it calls an internal error.
CONNECTION_LOST = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)

UNIQUE_VIOLATION = "23505"

_CONFLICTS = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "55P03",  # lock_not_available
}
_AWAY = {
    "25P03",  # idle_in_transaction_session_timeout
    "53200",  # out_of_memory
    "53300",  # too_many_connections
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now: it starts or recovers
    "57P05",  # idle_session_timeout
    "58000",  # system_error
    "58030",  # io_error
}
_UNSTORABLE_TEXT = {
    "22021",  # character_not_in_repertoire: a NUL in text
    "22P05",  # untranslatable_character: a NUL in jsonb
}


def translate(failure: BaseException) -> DomainError | None:
    """The error of the catalogue for what the driver or SQLAlchemy raised; None: a fault of ours, which stays as it is.

    The SQLSTATE is in the attribute `sqlstate` of the result, so that repositories can name the resource.
    """
    if isinstance(failure, exc.DBAPIError) and failure.orig is not None:
        failure = failure.orig
    if isinstance(failure, exc.TimeoutError):
        return DomainError("OVERLOADED", "All database connections of this process are busy.", limit="connections")
    sqlstate = getattr(failure, "sqlstate", None) or getattr(failure, "pgcode", None) or ""
    error = _of_sqlstate(sqlstate) or _of_cause(failure)
    if error is not None:
        error.__dict__["sqlstate"] = sqlstate
    return error


def _of_sqlstate(sqlstate: str) -> DomainError | None:
    if sqlstate == UNIQUE_VIOLATION:
        return DomainError("ALREADY_EXISTS", "A resource with this name exists already.")
    if sqlstate in _CONFLICTS:
        return DomainError("CONFLICT", "Two calls changed the same row at once; send the call again.")
    if sqlstate == "57014":  # query_canceled, by statement_timeout, which is the rest of the deadline
        return DomainError("DEADLINE_EXCEEDED", "The deadline passed while the database worked.")
    if sqlstate == "53100":  # disk_full
        return DomainError("STORAGE_FULL", "The disk of the database is full.", store="database")
    if sqlstate in _UNSTORABLE_TEXT:
        return DomainError("INVALID_FIELD", "A text holds the character U+0000, which cannot be stored.", field="")
    if sqlstate in _AWAY or sqlstate.startswith("08"):
        return unavailable()
    return None


def _of_cause(failure: BaseException | None) -> DomainError | None:
    """Without a SQLSTATE it is the connection that failed: refused, reset, closed, or too slow to come up."""
    seen = 0
    while failure is not None and seen < 5:
        sqlstate = getattr(failure, "sqlstate", None)
        if sqlstate:
            return _of_sqlstate(sqlstate)
        if isinstance(failure, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError):
            if isinstance(failure, asyncpg.DataError | asyncpg.UnsupportedClientFeatureError):
                return None
            return unavailable()
        if isinstance(failure, exc.DBAPIError) and failure.connection_invalidated:
            return unavailable()
        failure, seen = failure.__cause__, seen + 1
    return None


def unavailable() -> DomainError:
    """The database does not answer."""
    return DomainError("DATABASE_UNAVAILABLE", "The database does not answer.")


def sqlstate_of(error: DomainError) -> str:
    """The SQLSTATE behind a translated error; empty if there is none."""
    return error.__dict__.get("sqlstate", "")


def install(engine: AsyncEngine) -> None:
    """Makes every failure inside the engine come out translated."""

    @event.listens_for(engine.sync_engine, "handle_error")
    def _(context: ExceptionContext) -> None:
        error = translate(context.original_exception)
        if error is not None:
            raise error from context.original_exception
