"""How often each method was called, how long it took, and how it ended."""

from __future__ import annotations

import time

from libs.common.obs import meter
from libs.common.rpc.method import Exchange, Host, Method, Step
from libs.common.rpc.translate import translate


def wrap(method: Method, host: Host, step: Step) -> Step:
    """Records `rpc.server.duration` (seconds) by service, method and gRPC code."""
    del host
    duration = meter().create_histogram("rpc.server.duration", "s", "Duration of calls that this process served.")
    fixed = {"rpc.system": "grpc", "rpc.service": method.service, "rpc.method": method.rpc}
    succeeded = {**fixed, "rpc.grpc.status_code": 0}

    async def metrics(exchange: Exchange) -> bytes | None:
        attributes = succeeded
        start = time.perf_counter()
        try:
            return await step(exchange)
        except BaseException as failure:
            attributes = {**fixed, "rpc.grpc.status_code": translate(failure).code.value[0]}
            raise
        finally:
            duration.record(time.perf_counter() - start, attributes)

    return metrics
