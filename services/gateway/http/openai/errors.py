"""Errors as OpenAI's clients read them: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import orjson

from libs.common.errors import ArgosyError
from services.gateway.http.errors import HttpError, http_status

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 404: "invalid_request_error"}
_CODES = {
    "TOKEN_MISSING": "invalid_api_key",
    "TOKEN_INVALID": "invalid_api_key",
    "TOKEN_EXPIRED": "invalid_api_key",
    "TOKEN_REVOKED": "invalid_api_key",
    "RATE_LIMITED": "rate_limit_exceeded",
    "QUOTA_EXCEEDED": "insufficient_quota",
    "NOT_FOUND": "model_not_found",
}


class ParameterError(ArgosyError):
    """One parameter of the request is wrong; `code` is OpenAI's, where it has one."""

    def __init__(self, param: str | None, message: str, code: str | None = None) -> None:
        super().__init__("INVALID_FIELD", message, field=param)
        self.openai_code = code


def error_body(error: ArgosyError, status: int) -> bytes:
    """The JSON body of an error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = getattr(error, "openai_code", None) or _CODES.get(error.reason) or error.reason.lower()
    inner = {"message": error.message, "type": kind, "param": error.metadata.get("field"), "code": code}
    return orjson.dumps({"error": inner})


def status_of(error: ArgosyError | HttpError) -> tuple[ArgosyError, int]:
    """The error itself with the status of its answer."""
    if isinstance(error, HttpError):
        return error.error, error.status
    return error, http_status(error)


class MissingError(ArgosyError):
    """There is no such file, job or model for this caller: 404.

    Args:
        param: that named it.
        what: `File`, `fine-tuning job`, ...
        name: as the caller wrote it.
    """

    openai_code = "not_found"

    def __init__(self, param: str, what: str, name: str) -> None:
        shown = name[:128]
        super().__init__("NOT_FOUND", f"No such {what}: {shown!r}.", metadata={"name": shown, "field": param})
