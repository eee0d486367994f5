"""Which error of the catalogue an exception is."""

from __future__ import annotations

import asyncio

import grpc

from libs.common.domain import DomainError
from libs.common.errors import ArgosyError, from_rpc_error, internal, reason_of


def translate(failure: BaseException) -> ArgosyError:
    """The error that the caller sees for an exception that a stage or a handler raised."""
    if isinstance(failure, ArgosyError):
        return failure
    if isinstance(failure, DomainError):
        try:
            reason = reason_of(failure.reason)
        except KeyError:
            return internal()
        field = failure.metadata.get("field") if reason.name == "INVALID_FIELD" else None
        return ArgosyError(reason.number, failure.message, metadata=failure.metadata, field=field)
    if isinstance(failure, TimeoutError):
        return ArgosyError("DEADLINE_EXCEEDED", "The deadline passed.")
    if isinstance(failure, asyncio.CancelledError):
        return ArgosyError("CANCELLED", "The caller went away.")
    if isinstance(failure, grpc.RpcError):
        return from_rpc_error(failure)
    return internal()
