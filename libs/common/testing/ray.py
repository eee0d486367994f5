"""A real Ray head for tests."""

from __future__ import annotations

import random
import socket
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from deploy.local.ray import RayHead, kill

_PORTS = 4


@contextmanager
def ray_head(num_cpus: int = 8) -> Generator[RunningRay]:
    """A Ray head with token authentication on free ports and in a folder of its own; killed at the end."""
    with tempfile.TemporaryDirectory(prefix="argosy-ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray = RunningRay(RayHead(Path(folder), _free_ports(), num_cpus))
        ray.start()
        try:
            yield ray
        finally:
            ray.kill()


class RunningRay:
    """A head that a test may kill and start again."""

    def __init__(self, head: RayHead) -> None:
        self.head = head

    @property
    def address(self) -> str:
        return self.head.address

    @property
    def environment(self) -> dict[str, str]:
        """What a driver needs in its environment."""
        return self.head.environment()

    def start(self) -> None:
        """Starts it and waits until it listens."""
        self._process = self.head.start(self.head.folder / "head.log")
        self.head.wait(self._process)

    def kill(self) -> None:
        """kill -9 of the head and everything below it."""
        kill(self._process)


def _free_ports() -> int:
    """A port that is free together with the ones after it that a head takes."""
    # Anywhere in the range: two test runs on one machine would otherwise both take the first one.
    begin = random.randrange(21_400, 30_000, 10)  # noqa: S311 - not a secret
    for first in range(begin, 31_000, 10):
        taken = [socket.socket() for _ in range(_PORTS)]
        try:
            for offset, listener in enumerate(taken):
                listener.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for listener in taken:
                listener.close()
    raise RuntimeError("no free ports for a Ray head")
