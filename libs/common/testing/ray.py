"""A real Ray head for tests."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from deploy.local.ray import RayHead, kill

_PORTS = 4
_JOIN_SECONDS = 60.0


@contextmanager
def ray_head(num_cpus: int = 8) -> Generator[RunningRay]:
    """A Ray head with token authentication on free ports and in a folder of its own; killed at the end."""
    with tempfile.TemporaryDirectory(prefix="argosy-ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray = RunningRay(RayHead(Path(folder), _free_ports(), num_cpus))
        ray.start()
        try:
            yield ray
        finally:
            for node in ray.nodes:
                kill(node)
            ray.kill()


class RunningRay:
    """A head that a test may kill and start again."""

    def __init__(self, head: RayHead) -> None:
        self.head = head
        self.nodes: list[subprocess.Popen[bytes]] = []

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

    def join(self, num_cpus: int = 1) -> subprocess.Popen[bytes]:
        """Another node of the cluster, on this machine; returns when it has joined."""
        ray = Path(sys.executable).with_name("ray")
        command = [
            str(ray), "start", "--block", f"--address={self.address}", "--disable-usage-stats",
            f"--num-cpus={num_cpus}", "--object-store-memory=100000000",
            f"--dashboard-agent-listen-port={_free_ports()}",
            # Not those that the head gives to its workers.
            "--min-worker-port=20000", "--max-worker-port=20999",
        ]  # fmt: skip
        path = self.head.folder / f"node-{len(self.nodes)}.log"
        with path.open("ab") as log:
            node = subprocess.Popen(
                command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.nodes.append(node)
        deadline = time.monotonic() + _JOIN_SECONDS
        while "Ray runtime started" not in path.read_text(errors="replace"):
            if node.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the node did not join: {path.read_text(errors='replace')[-500:]}")
            time.sleep(0.1)
        return node

    def lose(self, node: subprocess.Popen[bytes]) -> None:
        """kill -9 of a node and everything on it."""
        kill(node)


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
