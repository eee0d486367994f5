"""The asynchronous side of the driver: starts the child process that holds Ray and speaks JSON lines with it."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from libs.compute.context import EngineError, Json
from libs.compute.errors import ComputeLost, ComputeTimeout, ComputeUnavailable

# A child costs 150 MB; an idle mesh has none.
_IDLE_SECONDS = 60.0
# Longer than joining a cluster takes on a busy machine (3 to 12 s); a child that is silent for longer is killed.
_ANSWER_SECONDS = 60.0
_POLL_SECONDS = 2.0
# The child gets these and nothing else: the service's environment has its database password.
_PASSED = ("PATH", "HOME", "LANG", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "OMP_NUM_THREADS")
_PASSED_PREFIXES = ("RAY_", "HF_", "LC_")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CarrierReport:
    """What `poll` says about a carrier.

    Attributes:
        state: `pending` (not yet answering), `running`, `succeeded`, `failed`, `interrupted` (worth another attempt),
            `cancelled`, `paused` or `lost` (no such actor).
        events: Log lines and metrics after the acknowledged one: `{"cursor", "kind": "log"|"metrics", "time", ...}`.
        progress: `{"fraction", "message", "cost"}` or None.
        checkpoint: The newest checkpoint, or None.
        result: What the engine returned, when it succeeded.
        error: `{"reason", "message", "metadata", "retryable"}`, when it failed or was interrupted.
        cpu_seconds: CPU time of the carrier's process so far.
    """

    state: str
    events: list[Json] = field(default_factory=list)
    progress: Json | None = None
    checkpoint: Json | None = None
    result: Json | None = None
    error: Json | None = None
    cpu_seconds: float = 0.0


_REPORT_FIELDS = frozenset(item.name for item in fields(CarrierReport))


class RayDriver:
    """Ray without importing it. The child starts at the first call, goes when it is idle, and comes back when it died.

    Every method raises ComputeUnavailable while Ray does not answer; that never means that running work was hurt.

    Args:
        address: `host:port` of the Ray head.
        service: Name of the service, whose certificate the actors show to the telemetry receiver.
        otlp: `host:port` of that receiver; empty: none.
        pki_dir: Folder with the certificates.
        environment: More environment for the child, such as RAY_AUTH_TOKEN_PATH; what is missing comes from this
        process. idle_seconds: After so long without a call the child ends.
    """

    def __init__(
        self,
        address: str,
        *,
        service: str = "",
        otlp: str = "",
        pki_dir: Path | None = None,
        environment: Mapping[str, str] | None = None,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        self._environment = {
            **{name: value for name, value in os.environ.items() if _is_passed(name)},
            **(environment or {}),
            "ARGOSY_RAY_ADDRESS": address,
            "ARGOSY_SERVICE": service,
            "ARGOSY_OTLP": otlp,
            "ARGOSY_PKI_DIR": str(pki_dir or ""),
            # A driver whose control service is gone must not sit and wait for it: the next one finds the new cluster.
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
        }
        self._idle_seconds = idle_seconds
        self._child: _Child | None = None
        self._in_flight = 0
        self._idle: asyncio.TimerHandle | None = None

    async def submit(
        self,
        name: str,
        entrypoint: str,
        spec: Json,
        *,
        kind: str = "",
        attempt: int = 1,
        resume: Json | None = None,
        write_grant: str | None = None,
        resources: Mapping[str, float] | None = None,
        traceparent: str = "",
    ) -> None:
        """Starts a carrier under `name`, or finds the one that has it already."""
        job = {
            "name": name,
            "entrypoint": entrypoint,
            "spec": spec,
            "kind": kind,
            "attempt": attempt,
            "resume": resume,
            "write_grant": write_grant,
            "traceparent": traceparent,
        }
        await self._ask("submit", name=name, job=job, resources=dict(resources or {}))

    async def poll(self, name: str, cursor: int = 0) -> CarrierReport:
        """What the carrier did after event `cursor`, which it then forgets."""
        report = await self._ask("poll", name=name, cursor=cursor, timeout=_POLL_SECONDS)
        return CarrierReport(**{key: value for key, value in report.items() if key in _REPORT_FIELDS})

    async def cancel(self, name: str) -> None:
        """Asks the engine to stop."""
        await self._ask("cancel", name=name)

    async def pause(self, name: str) -> None:
        """Asks the engine to stop at its next checkpoint."""
        await self._ask("pause", name=name)

    async def dismiss(self, name: str) -> None:
        """Ends the carrier, whatever it does. Nothing happens when it is gone."""
        await self.kill(name)

    async def start_actor(
        self, name: str, class_path: str, kwargs: Json, resources: Mapping[str, float] | None = None
    ) -> None:
        """Starts a detached actor of `package.module:Class` under `name`, or finds the one that has it already.

        Returns when Ray knows the name; the constructor may still run, or wait for resources. A constructor that raises
        makes the actor `lost`.

        Args:
            kwargs: Arguments of the constructor, as JSON.
            resources: `num_cpus`, `num_gpus`, `memory`, `max_concurrency` and custom resources.
        """
        await self._ask("start_actor", name=name, class_path=class_path, kwargs=kwargs, resources=dict(resources or {}))

    async def call(
        self,
        name: str,
        method: str,
        kwargs: Json | None = None,
        timeout: float = 10.0,  # noqa: ASYNC109 - the actor's time; the caller may still set a shorter one
    ) -> Any:
        """Calls a method of a named actor; the answer must be JSON.

        Raises:
            ComputeLost: The actor is gone.
            ComputeTimeout: It did not answer in `timeout` seconds (it may still be starting).
            EngineError: The method raised.
            ComputeUnavailable: Ray does not answer.
        """
        return await self._ask("call", timeout, name=name, method=method, kwargs=kwargs or {}, timeout=timeout)

    async def kill(self, name: str) -> None:
        """Kills a named actor. Nothing happens when it is gone."""
        await self._ask("kill", name=name)

    async def alive(self, name: str) -> bool:
        """Whether Ray knows a living (or starting) actor of that name."""
        return await self._ask("alive", name=name)

    async def list(self, prefix: str = "") -> list[str]:
        """Names of the actors in Argosy's namespace."""
        return await self._ask("list", prefix=prefix)

    async def close(self) -> None:
        """Ends the child. Actors stay."""
        if self._idle is not None:
            self._idle.cancel()
        child, self._child = self._child, None
        if child is not None:
            await asyncio.to_thread(child.end)

    @property
    def child_pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return self._child.pid if self._child is not None and self._child.lives else None

    async def __aenter__(self) -> RayDriver:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, operation: str, patience: float = 0.0, /, **arguments: Any) -> Any:
        child = self._child
        if child is None or not child.lives:
            child = self._child = _Child(self._environment, asyncio.get_running_loop())
        self._in_flight += 1
        try:
            async with asyncio.timeout(_ANSWER_SECONDS + patience):
                answer = await child.ask({"op": operation, **arguments})
        except TimeoutError as error:
            child.kill()
            raise ComputeUnavailable from error
        finally:
            self._in_flight -= 1
            self._postpone_idle_end()
        if "ok" in answer:
            return answer["ok"]
        raise _failure(answer, str(arguments.get("name", "")))

    def _postpone_idle_end(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(self._idle_seconds, self._end_idle)

    def _end_idle(self) -> None:
        if self._child is not None and not self._in_flight:
            self._child.close_pipe()


class _Child:
    """One driver process. A thread reads its answers, so that nothing here outlives an event loop unseen."""

    def __init__(self, environment: dict[str, str], loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self._writing = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "libs.compute.driver"],
            env=environment,
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        self.lives = True
        threading.Thread(target=self._read, name=f"ray-driver-{self.pid}", daemon=True).start()

    async def ask(self, request: Json) -> Json:
        """Sends a request and waits for its answer.

        Raises:
            ComputeUnavailable: The process ended.
        """
        number = next(self._numbers)
        future: asyncio.Future[Json] = self._loop.create_future()
        self._waiting[number] = future
        try:
            await asyncio.to_thread(self._write, json.dumps({"id": number, **request}).encode() + b"\n")
            if not self.lives:
                raise ComputeUnavailable
            return await future
        except OSError as error:
            raise ComputeUnavailable from error
        finally:
            self._waiting.pop(number, None)

    def close_pipe(self) -> None:
        """Tells the process to end."""
        self.lives = False
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def kill(self) -> None:
        self.lives = False
        self._process.kill()

    def end(self) -> None:
        """Ends the process and waits until it is gone."""
        self.close_pipe()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with self._writing:
            try:
                self._process.stdin.write(line)
                self._process.stdin.flush()
            except ValueError as error:  # closed by close_pipe
                raise BrokenPipeError from error

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._resolve, answer)
        self.lives = False
        code = self._process.wait()
        if code:
            _log.warning("the Ray driver %d ended with %d", self.pid, code)
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._fail_all)

    def _resolve(self, answer: Json) -> None:
        future = self._waiting.get(answer["id"])
        if future is not None and not future.done():
            future.set_result(answer)

    def _fail_all(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ComputeUnavailable())


def _is_passed(name: str) -> bool:
    return name in _PASSED or name.startswith(_PASSED_PREFIXES)


def _failure(answer: Json, name: str) -> Exception:
    match answer["error"]:
        case "lost":
            return ComputeLost(name)
        case "timeout":
            return ComputeTimeout(name)
        case "engine":
            return EngineError(answer["reason"], answer["message"], retryable=answer["retryable"], **answer["metadata"])
        case _:
            return ComputeUnavailable(answer["message"])
