"""Who changed what: one record for every call that changes something, done or refused."""

from __future__ import annotations

import logging

from libs.common.rpc.method import Exchange, Host, Method, Step
from libs.common.rpc.translate import translate

_log = logging.getLogger("argosy.audit")


def wrap(method: Method, host: Host, step: Step) -> Step:
    """Records the outcome of calls with side effects. Reads go straight through."""
    if method.policy.reads:
        return step

    async def audit(exchange: Exchange) -> bytes | None:
        outcome = "ok"
        try:
            return await step(exchange)
        except BaseException as failure:
            outcome = translate(failure).reason
            raise
        finally:
            record(host, exchange, outcome, method)

    return audit


def record(host: Host, exchange: Exchange, outcome: str, method: Method | None = None) -> None:
    """Writes one audit record.

    Args:
        host: the server.
        exchange: the call.
        outcome: `ok` or a name of ErrorReason.
        method: gives the resource's name; None while the request is not known to be valid.
    """
    call = exchange.call
    names = method.names(exchange.request) if method is not None and exchange.request is not None else []
    _log.info(
        "%s %s",
        call.method,
        outcome,
        extra={
            "argosy.audit": True,
            "argosy.service": host.service,
            "argosy.actor": call.principal.name,
            "argosy.peer": exchange.peer,
            "argosy.org": call.org,
            "argosy.resource": names[0][1] if names else "",
            "argosy.outcome": outcome,
            "argosy.request_id": call.request_id,
            "rpc.method": call.method,
        },
    )
