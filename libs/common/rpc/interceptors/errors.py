"""Outermost stage: whatever went wrong becomes a status from the catalogue, with details, and nothing else."""

from __future__ import annotations

import asyncio
import logging

from libs.common.errors import STATUS_DETAILS_KEY, ArgosyError, to_status
from libs.common.rpc.method import Exchange, Host, Method, Step
from libs.common.rpc.translate import translate

_log = logging.getLogger(__name__)


def wrap(method: Method, host: Host, step: Step) -> Step:
    """Turns exceptions into statuses.

    Ones that nobody foresaw are logged whole and sent as INTERNAL without their text.
    """
    del method

    async def errors(exchange: Exchange) -> bytes | None:
        try:
            return await step(exchange)
        except asyncio.CancelledError:
            if not host.load.draining:
                raise
            error = ArgosyError("DRAINING", "The server is shutting down.")
        except Exception as failure:
            error = translate(failure)
            if error.is_reason("INTERNAL"):
                _log.error(
                    "a call failed",
                    exc_info=failure,
                    extra={"argosy.request_id": exchange.call.request_id, "rpc.method": exchange.call.method},
                )
        status = to_status(error, exchange.call.request_id)
        # Aborting raises: it must happen outside of the handlers above, which would catch it.
        await exchange.context.abort(error.code, status.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),))

    return errors
