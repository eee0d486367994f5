"""The errors that a caller of an Argosy service can see, and their way over the wire and back.

One catalogue holds every reason: the enum `argosy.common.v1.ErrorReason`, whose values carry the gRPC code and the
delay after which a retry may help. Code raises `ArgosyError` (or, in a domain, `libs.common.domain.DomainError`) with
a reason; the server turns it into `google.rpc.Status` with details, the client turns that back into the same
`ArgosyError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
from argosy.common.v1 import error_reason_pb2, options_pb2
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "argosy.dev"
STATUS_DETAILS_KEY = "grpc-status-details-bin"

_PREFIX = "ERROR_REASON_"
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
# A client takes 8 KiB of metadata; a hostile value that is repeated in an error must not fill them. (length,
# violations) of texts, tried in turn until the status fits.
_LIMITS = ((512, 20), (128, 8), (48, 3))
_STATUS_BYTES = 5000
_TEXT_LIMIT = _LIMITS[0][0]


@dataclass(frozen=True, slots=True)
class Reason:
    """One line of the catalogue.

    Attributes:
        number: value of the enum ErrorReason.
        name: name without the prefix `ERROR_REASON_`, as it stands in ErrorInfo.reason.
        code: gRPC code that this reason always has.
        retry_after: seconds after which a retry may help; None where waiting does not help.
    """

    number: int
    name: str
    code: grpc.StatusCode
    retry_after: float | None


def _read_catalogue() -> tuple[dict[int, Reason], dict[str, Reason]]:
    by_number: dict[int, Reason] = {}
    by_name: dict[str, Reason] = {}
    for value in error_reason_pb2.ErrorReason.DESCRIPTOR.values:
        spec: options_pb2.ErrorSpec = value.GetOptions().Extensions[options_pb2.error]  # type: ignore[arg-type]
        name = value.name.removeprefix(_PREFIX)
        if value.number and not spec.code:
            raise RuntimeError(f"{value.name} has no gRPC code in error_reason.proto")
        code = _CODES[spec.code] if value.number else grpc.StatusCode.UNKNOWN
        reason = Reason(value.number, name, code, spec.retry_after_ms / 1000 if spec.retry_after_ms else None)
        by_number[value.number] = by_name[name] = reason
    return by_number, by_name


_BY_NUMBER, _BY_NAME = _read_catalogue()


def reason_of(reason: int | str) -> Reason:
    """The line of the catalogue for a number or a name, with or without the prefix.

    Raises KeyError if there is none.
    """
    if isinstance(reason, str):
        return _BY_NAME[reason.removeprefix(_PREFIX)]
    return _BY_NUMBER[reason]


class ArgosyError(Exception):
    """An error with a reason of the catalogue. Its message is shown to the caller, so it holds no internals.

    Args:
        reason: value of ErrorReason, or its name with or without the prefix.
        message: one sentence for a person.
        metadata: the dynamic parts of the message, as error_reason.proto documents them for the reason.
        field: the request field at fault; becomes a violation and `metadata["field"]`.
        violations: (field, description) pairs when several fields are at fault.
        retry_after: seconds; overrides the catalogue.
        request_id: set on errors that came from a peer.
    """

    def __init__(
        self,
        reason: int | str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        field: str | None = None,
        violations: Sequence[tuple[str, str]] = (),
        retry_after: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self._reason = reason_of(reason)
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = list(violations)
        if field is not None:
            self.metadata.setdefault("field", field)
            if not self.violations:
                self.violations.append((field, message))
        self.retry_after = self._reason.retry_after if retry_after is None else retry_after
        self.request_id = request_id

    @property
    def reason(self) -> str:
        """Name of the reason without its prefix, such as `NOT_FOUND`."""
        return self._reason.name

    @property
    def number(self) -> int:
        """Value of ErrorReason."""
        return self._reason.number

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC code that the catalogue gives the reason."""
        return self._reason.code

    def is_reason(self, *reasons: int | str) -> bool:
        """Whether the reason is one of these."""
        return any(reason_of(reason) is self._reason for reason in reasons)


def not_found(name: str) -> ArgosyError:
    """The resource does not exist, or not for this organization."""
    return ArgosyError("NOT_FOUND", f"{_short(name)} does not exist.", metadata={"name": name})


def already_exists(name: str) -> ArgosyError:
    """A resource of this name exists."""
    return ArgosyError("ALREADY_EXISTS", f"{_short(name)} exists already.", metadata={"name": name})


def invalid_field(field: str, description: str) -> ArgosyError:
    """One request field is missing, malformed or out of range."""
    return ArgosyError(
        "INVALID_FIELD", f"{field}: {description}", metadata={"field": field}, violations=[(field, description)]
    )


def state_conflict(name: str, state: str, wanted: str) -> ArgosyError:
    """The resource is in `state`, and the call needs it in `wanted`."""
    message = f"{_short(name)} is {state}; this needs {wanted}."
    return ArgosyError("STATE_CONFLICT", message, metadata={"name": name, "state": state, "wanted": wanted})


def etag_mismatch(name: str) -> ArgosyError:
    """Somebody changed the resource since the caller read it."""
    return ArgosyError("ETAG_MISMATCH", f"{_short(name)} has changed; read it again.", metadata={"name": name})


def unavailable(reason: int | str, message: str, **metadata: str) -> ArgosyError:
    """Something this service needs is away for now; `reason` says what."""
    return ArgosyError(reason, message, metadata=metadata)


def internal() -> ArgosyError:
    """A fault of ours. Says nothing about what went wrong: the request id finds that in the logs."""
    return ArgosyError("INTERNAL", "Internal error.")


def _short(text: str, limit: int = _TEXT_LIMIT) -> str:
    return text if len(text) <= limit else text[:limit] + "…"


def _pack(status: status_pb2.Status, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def to_status(error: ArgosyError, request_id: str = "") -> status_pb2.Status:
    """The wire form: ErrorInfo always; BadRequest, RetryInfo and RequestInfo where there is something to say."""
    status = _status(error, request_id, *_LIMITS[0])
    for limits in _LIMITS[1:]:
        if status.ByteSize() <= _STATUS_BYTES:
            break
        status = _status(error, request_id, *limits)
    return status


def _status(error: ArgosyError, request_id: str, length: int, violations: int) -> status_pb2.Status:
    status = status_pb2.Status(code=error.code.value[0], message=_short(error.message, length))
    metadata = {_short(key, 64): _short(str(value), length) for key, value in list(error.metadata.items())[:8]}
    _pack(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.violations:
        bad_request = error_details_pb2.BadRequest()
        for field, description in error.violations[:violations]:
            bad_request.field_violations.add(field=_short(field, length), description=_short(description, length))
        _pack(status, bad_request)
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        _pack(status, error_details_pb2.RetryInfo(retry_delay=delay))
    if request_id:
        _pack(status, error_details_pb2.RequestInfo(request_id=request_id))
    return status


def from_status(status: status_pb2.Status) -> ArgosyError:
    """The `ArgosyError` behind a status; an unknown reason becomes the one that the code suggests."""
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    request = error_details_pb2.RequestInfo()
    for detail in status.details:
        for known in (info, bad_request, retry, request):
            if detail.Is(known.DESCRIPTOR):  # type: ignore[arg-type]
                detail.Unpack(known)
    known_reason = info.domain == DOMAIN and info.reason in _BY_NAME and _BY_NAME[info.reason].number
    return ArgosyError(
        info.reason if known_reason else _reason_for_code(status.code, status.message),
        status.message,
        metadata=dict(info.metadata),
        violations=[(violation.field, violation.description) for violation in bad_request.field_violations],
        retry_after=retry.retry_delay.ToMilliseconds() / 1000 if retry.HasField("retry_delay") else None,
        request_id=request.request_id,
    )


def from_rpc_error(error: grpc.RpcError, service: str = "") -> ArgosyError:
    """The `ArgosyError` behind a failed call.

    Args:
        error: what a grpc.aio call raised.
        service: the peer that was called, for errors that gRPC itself made (the peer is away, the deadline passed).
    """
    code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
    details: str = error.details() or ""  # type: ignore[attr-defined]
    for key, value in error.trailing_metadata() or ():  # type: ignore[attr-defined]
        if key == STATUS_DETAILS_KEY:
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    reason = _reason_for_code(code.value[0], details)
    messages = {
        "PEER_UNAVAILABLE": f"{service or 'The service'} does not answer.",
        "DEADLINE_EXCEEDED": "The deadline passed.",
        "CANCELLED": "The call was cancelled.",
        "TOO_LARGE": "The message is larger than the limit.",
    }
    metadata = {"service": service} if reason == "PEER_UNAVAILABLE" and service else {}
    return ArgosyError(reason, messages.get(reason, "The call failed."), metadata=metadata)


def _reason_for_code(code: int, details: str) -> str:
    """What a status without our ErrorInfo means: gRPC itself made it, or a program that is not ours."""
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]:
        return "TOO_LARGE" if "larger than max" in details else "OVERLOADED"
    by_code = {
        grpc.StatusCode.CANCELLED.value[0]: "CANCELLED",
        grpc.StatusCode.INVALID_ARGUMENT.value[0]: "INVALID_FIELD",
        grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: "DEADLINE_EXCEEDED",
        grpc.StatusCode.NOT_FOUND.value[0]: "NOT_FOUND",
        grpc.StatusCode.ALREADY_EXISTS.value[0]: "ALREADY_EXISTS",
        grpc.StatusCode.PERMISSION_DENIED.value[0]: "PEER_NOT_ALLOWED",
        grpc.StatusCode.FAILED_PRECONDITION.value[0]: "STATE_CONFLICT",
        grpc.StatusCode.ABORTED.value[0]: "CONFLICT",
        grpc.StatusCode.OUT_OF_RANGE.value[0]: "OFFSET_MISMATCH",
        grpc.StatusCode.UNIMPLEMENTED.value[0]: "ROUTE_UNKNOWN",
        grpc.StatusCode.UNAVAILABLE.value[0]: "PEER_UNAVAILABLE",
        grpc.StatusCode.UNAUTHENTICATED.value[0]: "TOKEN_INVALID",
    }
    return by_code.get(code, "INTERNAL")
