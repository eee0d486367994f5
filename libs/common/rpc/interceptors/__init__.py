"""The one interceptor chain. Each module holds one stage: `wrap(method, host, step)` puts it around the steps after it.

The stages are put together once a method when the server starts, so that a call runs through nested coroutines and
nothing is looked up or allocated for the chain itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from libs.common.rpc.interceptors import (
    admission,
    audit,
    authenticate,
    authorise,
    deadline,
    errors,
    metrics,
    trace,
    validate,
)
from libs.common.rpc.method import Host, Method, Step, Wrap

# Outermost first. Errors are outermost, so that whatever any stage raises reaches the caller as a status. Trace and
# metrics see refusals too. Admission and deadline come before anything that costs. Nobody unknown gets his message
# looked at, authorisation needs a valid one, and only calls that will happen are audited from inside (refusals are
# audited where they happen).
CHAIN: tuple[tuple[str, Wrap], ...] = (
    ("errors", errors.wrap),
    ("trace", trace.wrap),
    ("metrics", metrics.wrap),
    ("admission", admission.wrap),
    ("deadline", deadline.wrap),
    ("authenticate", authenticate.wrap),
    ("validate", validate.wrap),
    ("authorise", authorise.wrap),
    ("audit", audit.wrap),
)


def compile_chain(method: Method, host: Host, innermost: Step, chain: Sequence[tuple[str, Wrap]] = CHAIN) -> Step:
    """The whole chain around `innermost`, for one method."""
    step = innermost
    for _, wrap in reversed(chain):
        step = wrap(method, host, step)
    return step
