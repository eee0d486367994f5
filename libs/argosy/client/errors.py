"""What went wrong, typed: by HTTP status, with the reason of the catalogue, the fields at fault and the request id."""

from __future__ import annotations

import json
from typing import Any


class ApiError(Exception):
    """A refusal or a failure of the platform.

    Attributes:
        status: of HTTP; 0 when no answer came.
        reason: a name of argosy.common.v1.ErrorReason without its prefix, such as NOT_FOUND or GATE_SHUT.
        message: for people.
        metadata: what the catalogue says that the reason carries.
        violations: (field path, description) of every field at fault.
        request_id: finds the call in the logs and traces.
        retry_after: seconds after which the same call may succeed; None where waiting does not help.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        metadata: dict[str, str] | None = None,
        violations: list[tuple[str, str]] | None = None,
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.metadata = metadata or {}
        self.violations = violations or []
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        # The message says the first, with its field or without.
        fields = "".join(f"\n  {field}: {text}" for field, text in self.violations if text not in self.message)
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.reason}: {self.message}{request}{fields}"


class InvalidRequest(ApiError):
    """A field is missing, malformed or out of range; or the request is not what the route takes."""


class Unauthenticated(ApiError):
    """No key, or one that is unknown, expired or revoked."""


class Forbidden(ApiError):
    """The key's role does not allow it, or a second person must decide."""


class NotFound(ApiError):
    """There is no such resource in the organization of the key."""


class Conflict(ApiError):
    """It exists already, or somebody else changed it first."""


class FailedPrecondition(ApiError):
    """The state of the resource does not allow it, such as a gate that is shut."""


class TooManyRequests(ApiError):
    """A limit, a quota or a disk is used up."""


class Unavailable(ApiError):
    """A part of the platform does not answer now. Worth another try."""


_BY_CODE: dict[str, type[ApiError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": Forbidden,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": Conflict,
    "ABORTED": Conflict,
    "FAILED_PRECONDITION": FailedPrecondition,
    "RESOURCE_EXHAUSTED": TooManyRequests,
    "UNAVAILABLE": Unavailable,
}
_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    429: TooManyRequests,
    502: Unavailable,
    503: Unavailable,
}


def from_answer(status: int, body: bytes, request_id: str = "", retry_after: str | None = None) -> ApiError:
    """The error that an answer of the gateway stands for.

    Args:
        status: of HTTP.
        body: JSON `{"error": {...}}`; anything else is shown shortened.
        request_id: of the header X-Request-Id.
        retry_after: header Retry-After.
    """
    wait = float(retry_after) if retry_after and retry_after.isdigit() else None
    try:
        error: Any = json.loads(body)["error"]
        code = str(error.get("status", ""))
        details = {str(detail.get("@type", "")).rpartition(".")[2]: detail for detail in error.get("details", [])}
    except (ValueError, KeyError, TypeError, AttributeError):
        kind = _BY_STATUS.get(status, ApiError)
        text = body[:200].decode(errors="replace").strip() or "no content"
        return kind(status, f"HTTP_{status}", text, request_id=request_id, retry_after=wait)
    info = details.get("ErrorInfo", {})
    violations = details.get("BadRequest", {}).get("fieldViolations", [])
    return _BY_CODE.get(code, _BY_STATUS.get(status, ApiError))(
        status,
        str(error.get("reason") or info.get("reason") or error.get("code") or code),
        str(error.get("message", "")),
        metadata=dict(info.get("metadata", {})),
        violations=[(str(item.get("field", "")), str(item.get("description", ""))) for item in violations],
        request_id=str(error.get("request_id") or request_id),
        retry_after=wait,
    )


def no_answer(url: str, error: Exception) -> Unavailable:
    """The error for a gateway that cannot be reached."""
    text = str(error) or type(error).__name__
    return Unavailable(
        0, "GATEWAY_UNREACHABLE", f"no answer from {url}: {text}. `argosy status` shows whether the mesh runs."
    )


def status_of(body: str) -> int:
    """The HTTP status that an error inside a stream would have had."""
    try:
        return int(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return 500
