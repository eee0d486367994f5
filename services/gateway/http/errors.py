"""Errors as HTTP says them: a status line and one JSON body."""

from __future__ import annotations

import math
from typing import Any

import grpc
import orjson

from libs.common.errors import DOMAIN, ArgosyError

# https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto names the HTTP status of each code.
_STATUS: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
# Reasons that HTTP has a better word for than for their code.
_BY_REASON = {"TOO_LARGE": 413, "ROUTE_UNKNOWN": 404, "STORAGE_FULL": 507, "OFFSET_MISMATCH": 416}


class HttpError(Exception):
    """An error whose HTTP status does not follow from its code: 405, 408, 411, 415, 431.

    Args:
        status: of the answer.
        error: what the body says.
        headers: more headers of the answer.
    """

    def __init__(self, status: int, error: ArgosyError, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error
        self.headers = headers


def http_status(error: ArgosyError) -> int:
    """The status of the answer for an error."""
    return _BY_REASON.get(error.reason) or _STATUS[error.code]


def retry_after(error: ArgosyError) -> bytes | None:
    """The value of the header Retry-After in whole seconds, rounded up; None where waiting does not help."""
    return None if error.retry_after is None else b"%d" % max(1, math.ceil(error.retry_after))


def error_body(error: ArgosyError, status: int, request_id: str) -> bytes:
    """The JSON body: `{"error": {code, status, message, reason, details, request_id}}`."""
    details: list[dict[str, Any]] = [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": error.reason,
            "domain": DOMAIN,
            "metadata": error.metadata,
        }
    ]
    if error.violations:
        violations = [{"field": field, "description": text} for field, text in error.violations]
        details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations})
    if error.retry_after is not None:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{error.retry_after:g}s"})
    inner = {
        "code": status,
        "status": error.code.name,
        "message": error.message,
        "reason": error.reason,
        "details": details,
        "request_id": request_id,
    }
    return orjson.dumps({"error": inner})
