"""Running a function over shards of rows: as Ray tasks where Ray is running, in this process otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

# Ray counts CPUs only in its books. The carrier of the task holds a whole one and mostly waits, so shards ask for half.
_SHARD_CPUS = 0.5
# Seconds without a finished shard after which this process computes one itself: other work may hold every CPU for
# hours.
_PATIENCE = 10.0


def map_shards(
    function: Callable[..., T], shards: list[tuple[Any, ...]], local: Callable[..., T], log: Callable[[str], None]
) -> Iterator[T]:
    """Calls `function(*shard)` for each shard and yields the results in order.

    The results do not depend on where a shard was computed. At most a few shards are under way, so results do not
    pile up.

    Args:
        function: At the top of a module, so that Ray workers can import it; its arguments and result are picklable.
        shards: Arguments of each call.
        local: The same for this process, which already has open what `function` would open.
        log: Told where the shards run.
    """
    if len(shards) < 2 or not _ray_is_running():
        log(f"{len(shards)} shards in this process")
        for shard in shards:
            yield local(*shard)
        return
    yield from _on_ray(function, shards, local, log)


def _ray_is_running() -> bool:
    try:
        import ray
    except ImportError:
        return False
    return ray.is_initialized()


def _on_ray(
    function: Callable[..., T], shards: list[tuple[Any, ...]], local: Callable[..., T], log: Callable[[str], None]
) -> Iterator[T]:
    import ray

    remote = ray.remote(function).options(num_cpus=_SHARD_CPUS, scheduling_strategy="SPREAD")
    # A worker process takes a second to start: as many as the machines have cores, whatever Ray's books say.
    window = (os.cpu_count() or 1) * sum(node["Alive"] for node in ray.nodes())
    log(f"{len(shards)} shards on Ray, {window} at a time")
    under_way: dict[int, Any] = {}
    started = 0
    try:
        for number, shard in enumerate(shards):
            while started < len(shards) and started - number < window:
                under_way[started] = remote.remote(*shards[started])
                started += 1
            reference = under_way.pop(number)
            done, _ = ray.wait([reference], timeout=_PATIENCE)
            if done:
                yield ray.get(reference)
            else:
                log(f"no CPU for shard {number} in {_PATIENCE:g} s; it runs in this process")
                ray.cancel(reference, force=True)
                yield local(*shard)
    finally:
        for reference in under_way.values():
            ray.cancel(reference, force=True)
