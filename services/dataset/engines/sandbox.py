"""A process that runs a Python function of the user's over rows and can do nothing else.

The child (`sandbox_child.py`) closes itself in before it sees the function: see there for how. This side starts it,
speaks with it over two pipes, and ends it when it breaks a limit. Where the child cannot close itself in, nothing
runs.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.dataset.domain.functions import MODULES
from services.dataset.engines.rows import MAX_ROW_BYTES

CHILD = Path(__file__).with_name("sandbox_child.py")
# Where `libs` lies.
ROOT = Path(__file__).parents[3]
# A child starts in a fifth of a second; a machine that is out of memory takes longer.
_START_SECONDS = 60.0
# JSON writes a character in at most six bytes where the row's canonical form has one.
_LONGEST_ANSWER = 6 * MAX_ROW_BYTES
_PIPE_BYTES = 64 * 1024


class SandboxUnavailable(Exception):
    """This machine has no sandbox; the message says what is missing."""


class Stopped(Exception):
    """The sandbox is gone, or was ended for breaking a limit; the message says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a function may use.

    Attributes:
        seconds: of wall time for one row.
        memory: address space of the process in bytes.
    """

    seconds: float
    memory: int


class Sandbox:
    """One child process with one function. Not for two threads at once.

    Args:
        source: Python with `def row(row)`.
        limits: Of the child.

    Raises:
        SandboxUnavailable: The child cannot close itself in.
        Stopped: The source cannot be loaded.
    """

    def __init__(self, source: str, limits: Limits) -> None:
        self._limits = limits
        # No descriptor, no environment and no working folder of ours; the same order of sets in every child. It gives
        # up the path to our modules when it closes itself in.
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-B", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT)},
            cwd="/",
            close_fds=True,
            start_new_session=True,
            bufsize=0,
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._stdin, self._stdout = self._child.stdin.fileno(), self._child.stdout.fileno()
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)
        self._received = bytearray()
        try:
            self._begin(source)
        except BaseException:
            self.close()
            raise

    def call(self, rows: Sequence[bytes]) -> Iterator[bytes]:
        """The function's answer to each row, JSON both, without line feeds.

        Raises:
            Stopped: At the row for which no answer comes.
        """
        yield from self._exchange(b"".join(row + b"\n" for row in rows), len(rows), self._limits.seconds)

    def close(self) -> None:
        """Ends the child."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()

    def _begin(self, source: str) -> None:
        """Has the child close itself in, and only then gives it the source."""
        settings = {"modules": MODULES, "memory": self._limits.memory}
        try:
            (closed,) = self._exchange(json.dumps(settings).encode() + b"\n", 1, _START_SECONDS)
        except Stopped as error:
            raise SandboxUnavailable(f"no sandbox for functions can be set up here: {error}") from None
        missing = json.loads(closed)["missing"]
        if missing:
            raise SandboxUnavailable(f"no sandbox for functions can be set up here: {missing}")
        (loaded,) = self._exchange(json.dumps(source).encode() + b"\n", 1, self._limits.seconds)
        error = json.loads(loaded)["error"]
        if error:
            raise Stopped(f"the function cannot be loaded: {error}")

    def _exchange(self, data: bytes, answers: int, seconds: float) -> Iterator[bytes]:
        """Writes `data` while it reads lines, so that neither side waits for the other with a full pipe."""
        unsent = memoryview(data)
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            selector.register(self._stdin, selectors.EVENT_WRITE)
            while answers:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise Stopped(f"no answer in {seconds:g} s")
                for key, _ in ready:
                    if key.fd == self._stdin:
                        unsent = self._write(unsent)
                        if not unsent:
                            selector.unregister(self._stdin)
                        continue
                    for line in self._read():
                        deadline = time.monotonic() + seconds
                        answers -= 1
                        if answers < 0:
                            raise Stopped("it wrote into the channel of its answers")
                        yield line

    def _write(self, unsent: memoryview) -> memoryview:
        try:
            return unsent[os.write(self._stdin, unsent[:_PIPE_BYTES]) :]
        except BrokenPipeError:
            # Why it is gone is told where its answers end.
            return memoryview(b"")

    def _read(self) -> list[bytes]:
        chunk = os.read(self._stdout, _PIPE_BYTES)
        if not chunk:
            raise Stopped(self._end())
        if b"\n" not in chunk:
            self._received += chunk
            lines: list[bytes] = []
        else:
            first, *lines, rest = chunk.split(b"\n")
            lines.insert(0, bytes(self._received) + first)
            self._received = bytearray(rest)
        if len(self._received) > _LONGEST_ANSWER:
            raise Stopped(f"its answer is longer than {_LONGEST_ANSWER:,} bytes")
        return lines

    def _end(self) -> str:
        """How the child ended."""
        code = self._child.wait(timeout=_START_SECONDS)
        if code >= 0:
            return f"its process ended with code {code}"
        if -code == signal.SIGXCPU:
            return "it used more processor time than it may"
        return f"its process was ended by {signal.Signals(-code).name}"
