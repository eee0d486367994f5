"""The child process that holds Ray: `python -m libs.compute.driver`, spoken to by JSON lines on stdin and stdout.

It exists so that no service process ever imports Ray. It ends when its stdin closes, which the kernel does when the
service is killed; the actors are detached and live on. It also ends when the cluster that it knew is gone: the next
child finds the new one.

Request: `{"id": 1, "op": "poll", ...arguments}`. Answer: `{"id": 1, "ok": <value>}` or
`{"id": 1, "error": "unavailable" | "lost" | "timeout" | "engine", "message": ..., ...}`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from libs.compute.context import Json

NAMESPACE = "argosy"
_ROOT = Path(__file__).resolve().parents[2]
_WORKERS = 16
_HEALTH_SECONDS = 2.0
# Calls to a cluster that does not answer for this long are over: the process ends and is started again.
_SILENCE_SECONDS = 20.0
CLUSTER_GONE = 3

_log = logging.getLogger(__name__)


class _Failure(Exception):
    """An answer that is not a value."""

    def __init__(self, kind: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.answer = {"error": kind, "message": message, **more}


class Driver:
    """The operations. Each may be called from any thread.

    Args:
        address: `host:port` of the Ray head.
        environment: Variables for the actors. No secrets: Ray shows them to whoever may read its state.
    """

    def __init__(self, address: str, environment: dict[str, str]) -> None:
        self._address = address
        self._environment = environment
        self._lock = threading.Lock()
        self._connected = False
        self._handles: dict[str, Any] = {}
        self._polls: dict[tuple[str, int], Any] = {}

    def connect(self) -> None:
        """Joins the cluster as a driver; nothing happens when it has."""
        with self._lock:
            if self._connected:
                return
            if not _listens(self._address):
                raise _Failure("unavailable", "the compute cluster does not answer")
            import ray

            try:
                ray.init(
                    address=self._address,
                    namespace=NAMESPACE,
                    log_to_driver=False,
                    configure_logging=False,
                    logging_level=logging.ERROR,
                )
            except Exception as error:  # Ray raises many kinds here: refused token, no answer, other version
                raise _Failure("unavailable", f"the compute cluster refuses: {type(error).__name__}") from error
            self._connected = True
            threading.Thread(target=self._watch, args=(ray.get_runtime_context().get_node_id(),), daemon=True).start()

    def submit(self, name: str, job: Json, resources: Json) -> None:
        from libs.compute.actor import TaskCarrier

        # Four threads: polls and a cancel are answered while an earlier poll still waits.
        self._create(name, TaskCarrier, resources, {"job": job}, 4)

    def poll(self, name: str, cursor: int, timeout: float) -> Json:
        import ray
        from ray import exceptions

        try:
            # One call in flight a carrier: polls of one that is still starting must not pile up behind its start.
            key = (name, cursor)
            reference = self._polls.get(key) or self._handle(name).poll.remote(cursor)
            self._polls[key] = reference
            report = ray.get(reference, timeout=timeout)
            del self._polls[key]
            return dict(report)
        except exceptions.GetTimeoutError:
            return {"state": "pending"}
        except (exceptions.ActorUnavailableError, _Failure, exceptions.RayActorError) as error:
            self._polls.pop((name, cursor), None)
            self._handles.pop(name, None)
            if isinstance(error, exceptions.ActorUnavailableError):
                return {"state": "pending"}
            return {"state": "lost"}

    def cancel(self, name: str) -> None:
        try:
            self._handle(name).cancel.remote()
        except _Failure:
            return

    def pause(self, name: str) -> None:
        try:
            self._handle(name).pause.remote()
        except _Failure:
            return

    def start_actor(self, name: str, class_path: str, kwargs: Json, resources: Json) -> None:
        from libs.compute.actor import ActorHost

        self._create(name, ActorHost, resources, {"class_path": class_path, "kwargs": kwargs}, 1000)

    def call(self, name: str, method: str, kwargs: Json, timeout: float) -> Any:
        import ray
        from ray import exceptions

        try:
            answer: Json = ray.get(self._handle(name).call.remote(method, kwargs), timeout=timeout)
        except exceptions.GetTimeoutError as error:
            raise _Failure("timeout", f"actor {name} did not answer in time") from error
        except exceptions.RayActorError as error:
            self._handles.pop(name, None)
            raise _Failure("lost", f"actor {name} is gone") from error
        if "ok" in answer:
            return answer["ok"]
        raise _Failure("engine", **answer["error"])

    def kill(self, name: str) -> None:
        import ray

        try:
            ray.kill(self._handle(name), no_restart=True)
        except _Failure:
            return
        finally:
            self._handles.pop(name, None)

    def alive(self, name: str) -> bool:
        return name in self.list(name)

    def list(self, prefix: str) -> list[str]:
        from ray.util import list_named_actors

        return [name for name in list_named_actors() if name.startswith(prefix)]

    def _create(self, name: str, actor: type, resources: Json, arguments: Json, concurrency: int) -> None:
        import ray

        options = {"num_cpus": 1, "max_concurrency": concurrency, **resources}
        self._handles[name] = (
            ray.remote(actor)
            .options(
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                max_restarts=0,
                runtime_env={"env_vars": self._environment},
                **options,
            )
            .remote(**arguments)
        )

    def _handle(self, name: str) -> Any:
        import ray

        handle = self._handles.get(name)
        if handle is None:
            try:
                handle = ray.get_actor(name, NAMESPACE)
            except ValueError as error:
                raise _Failure("lost", f"actor {name} is gone") from error
            self._handles[name] = handle
        return handle

    def _watch(self, node: str) -> None:
        """Ends the process when its node is no longer part of the cluster, or the cluster does not answer."""
        import ray

        seen = time.monotonic()

        def look() -> None:
            nonlocal seen
            while True:
                if not any(entry["NodeID"] == node and entry["Alive"] for entry in ray.nodes()):
                    _end("its node left the cluster")
                seen = time.monotonic()
                time.sleep(_HEALTH_SECONDS)

        threading.Thread(target=look, daemon=True).start()
        refused = 0
        while True:
            time.sleep(_HEALTH_SECONDS / 2)
            refused = 0 if _listens(self._address) else refused + 1
            if refused >= 2 or time.monotonic() - seen > _SILENCE_SECONDS:
                _end("the cluster does not answer")


_OPERATIONS = frozenset({"submit", "poll", "cancel", "pause", "start_actor", "call", "kill", "alive", "list"})


def serve(driver: Driver, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers requests, several at a time, until `requests` ends."""
    writing = threading.Lock()

    def handle(request: Json) -> None:
        number, operation = request.pop("id"), request.pop("op")
        try:
            driver.connect()
            if operation not in _OPERATIONS:
                raise _Failure(
                    "engine", f"there is no operation {operation}", reason="INTERNAL", retryable=False, metadata={}
                )
            answer: Json = {"ok": getattr(driver, operation)(**request)}
            line = json.dumps({"id": number, **answer})
        except _Failure as failure:
            line = json.dumps({"id": number, **failure.answer})
        except Exception as error:  # what Ray raises when the cluster breaks in the middle has no common base
            _log.warning("%s failed: %s: %s", operation, type(error).__name__, error)
            line = json.dumps({"id": number, "error": "unavailable", "message": "the compute cluster does not answer"})
        with writing:
            answers.write(line.encode() + b"\n")
            answers.flush()

    with ThreadPoolExecutor(_WORKERS, "driver") as pool:
        for line in requests:
            pool.submit(handle, json.loads(line))
        # The service is gone or has no more work. Threads may hang in Ray, so nothing is waited for.
        _end("its service closed the pipe", 0)


def actor_environment() -> dict[str, str]:
    """What actors need to import Argosy and to send their telemetry; everything else they inherit from the Ray head."""
    names = ("ARGOSY_OTLP", "ARGOSY_PKI_DIR", "ARGOSY_SERVICE")
    passed = {name: os.environ[name] for name in names if os.environ.get(name)}
    return {"PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'libs'}", **passed}


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 1.0):
            return True
    except OSError:
        return False


def _end(why: str, code: int = CLUSTER_GONE) -> None:
    """Ends at once: Ray's own exit handlers wait for a cluster that may be gone. Detached actors are not touched."""
    _log.warning("the Ray driver ends: %s", why)
    logging.shutdown()
    os._exit(code)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    # Whatever Ray prints must not end up between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(Driver(os.environ["ARGOSY_RAY_ADDRESS"], actor_environment()), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
