"""What a run has used, and how fast its machine computes: what the estimates of later runs are made from."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

# The matrices of a small decoder and a row: larger ones are as fast. One product takes a millisecond, and is seldom
# interrupted where others compute too.
_TOKENS, _HIDDEN, _WIDE = 128, 384, 1024
# More than the caches of a core hold.
_FLOATS = 4 << 20
_CALLS = 200
_ROUNDS = 30


def peak_bytes() -> int:
    """Most memory that this process has held. Of Linux the high-water mark, which begins anew with each program."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def measure_rates() -> dict[str, float]:
    """How fast this process computes on the CPU, with as many threads as torch has. Takes some fifty milliseconds.

    Returns:
        `operations` of a matrix product a second, `bandwidth` of memory in bytes a second, `call_seconds` of an
        operation on almost nothing.
    """
    left, right = torch.ones(_TOKENS, _HIDDEN), torch.ones(_HIDDEN, _WIDE)
    many, few = torch.ones(_FLOATS), torch.ones(1)

    def calls() -> None:
        for _ in range(_CALLS):
            torch.add(few, few)

    with torch.no_grad():
        product = _fastest(lambda: left @ right)
        # Each is read and written.
        moved = _fastest(lambda: many.mul_(1.0))
        called = _fastest(calls)
    return {
        "operations": 2.0 * _TOKENS * _HIDDEN * _WIDE / product,
        "bandwidth": 2.0 * 4 * _FLOATS / moved,
        "call_seconds": called / _CALLS,
    }


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few rounds: the others waited for somebody else."""
    work()
    seconds: list[float] = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return max(min(seconds), 1e-9)
