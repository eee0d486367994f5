"""Errors as MLflow's clients read them: `{"error_code", "message"}`.

https://mlflow.org/docs/latest/rest-api.html and mlflow/protos/databricks.proto
"""

from __future__ import annotations

import orjson

from libs.common.errors import ArgosyError

_CODES = {
    "INVALID_FIELD": "INVALID_PARAMETER_VALUE",
    "PAGE_TOKEN_INVALID": "INVALID_PARAMETER_VALUE",
    "CONTENT_INVALID": "INVALID_PARAMETER_VALUE",
    "TOO_LARGE": "INVALID_PARAMETER_VALUE",
    "BODY_INVALID": "MALFORMED_REQUEST",
    "NOT_FOUND": "RESOURCE_DOES_NOT_EXIST",
    "ALREADY_EXISTS": "RESOURCE_ALREADY_EXISTS",
    "STATE_CONFLICT": "INVALID_STATE",
    "TOKEN_MISSING": "UNAUTHENTICATED",
    "TOKEN_INVALID": "UNAUTHENTICATED",
    "TOKEN_EXPIRED": "UNAUTHENTICATED",
    "TOKEN_REVOKED": "UNAUTHENTICATED",
    "ROLE_MISSING": "PERMISSION_DENIED",
    "RATE_LIMITED": "REQUEST_LIMIT_EXCEEDED",
    "ROUTE_UNKNOWN": "ENDPOINT_NOT_FOUND",
    "STORAGE_FULL": "RESOURCE_EXHAUSTED",
}
_BY_STATUS = {403: "PERMISSION_DENIED", 409: "RESOURCE_CONFLICT", 503: "TEMPORARILY_UNAVAILABLE"}


class ParameterError(ArgosyError):
    """One parameter of the request is wrong."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__("INVALID_FIELD", f"{name}: {problem}", field=name)


class MissingError(ArgosyError):
    """There is no such thing for this caller.

    Args:
        what: `experiment`, `run`, ...
        name: as the caller wrote it.
    """

    def __init__(self, what: str, name: str) -> None:
        shown = name[:128]
        super().__init__("NOT_FOUND", f"No such {what}: {shown!r}.", metadata={"name": shown})


class UnsupportedError(ArgosyError):
    """MLflow can do this, and Argosy does it in another way, which the message names."""

    mlflow_code = "NOT_IMPLEMENTED"

    def __init__(self, message: str) -> None:
        super().__init__("ROUTE_UNKNOWN", message, metadata={"path": ""})


def error_body(error: ArgosyError, status: int) -> bytes:
    """The JSON body of an error."""
    code = getattr(error, "mlflow_code", None) or _CODES.get(error.reason) or _BY_STATUS.get(status)
    code = code or ("BAD_REQUEST" if status < 500 else "INTERNAL_ERROR")
    return orjson.dumps({"error_code": code, "message": error.message})


def status_of(error: ArgosyError, status: int) -> int:
    """The status of the answer: MLflow has 400 where a thing exists already; what is not supported is no fault of the
    server.
    """
    return 400 if isinstance(error, UnsupportedError) or error.is_reason("ALREADY_EXISTS") else status
