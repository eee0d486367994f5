"""The request is what its proto says: it parses, and it meets the rules that stand beside its fields."""

from __future__ import annotations

import protovalidate
from google.protobuf.message import DecodeError, Message

from libs.common.errors import ArgosyError
from libs.common.rpc.method import Exchange, Host, Method, Step
from libs.common.rpc.times import time_checker

# protovalidate compiles the rules of a message once and keeps them.
_VALIDATOR = protovalidate.Validator()


def wrap(method: Method, host: Host, step: Step) -> Step:
    """Parses the body and checks it; a wrong one is INVALID_ARGUMENT with each field named."""
    del host
    parse = method.request.FromString
    # Compiles the rules now: the first call of the method must not pay for it, and a wrong rule must stop the start.
    _VALIDATOR.collect_violations(method.request())

    wrong_times = time_checker(method.request.DESCRIPTOR)

    async def validate(exchange: Exchange) -> bytes | None:
        try:
            request = parse(exchange.body)
        except DecodeError:
            raise ArgosyError("BODY_INVALID", "The body is not a message of this method.") from None
        violations = _VALIDATOR.collect_violations(request)
        if violations:
            raise _invalid([(_path(v), v.proto.message or v.proto.rule_id) for v in violations])
        if wrong_times is not None and (times := wrong_times(request)):
            raise _invalid(times)
        exchange.request = request
        return await step(exchange)

    return validate


def require_valid(message: Message, field: str) -> None:
    """Checks a message that a handler put together, such as a resource with a few fields of a request in it.

    Args:
        field: of the request, that the message stands for.

    Raises:
        ArgosyError: INVALID_FIELD that names each field.
    """
    violations = _VALIDATOR.collect_violations(message)
    if violations:
        raise _invalid([(f"{field}.{_path(v)}", v.proto.message or v.proto.rule_id) for v in violations])


def _invalid(found: list[tuple[str, str]]) -> ArgosyError:
    field, description = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return ArgosyError("INVALID_FIELD", f"{field}: {description}{more}", metadata={"field": field}, violations=found)


def _path(violation: protovalidate.Violation) -> str:
    """`dataset.labels[key]`: the field as a caller writes it."""
    parts: list[str] = []
    for element in violation.proto.field.elements if violation.proto.field is not None else ():
        subscript = element.subscript
        parts.append(element.field_name + (f"[{subscript.value}]" if subscript is not None else ""))
    return ".".join(parts)
