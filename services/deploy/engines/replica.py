"""A replica: one process that holds a model and serves InferenceService on a port of its own.

In a cluster it is a detached named Ray actor (`VllmReplica`); in tests and notebooks the same class works in any
process. It runs one event loop in a thread of its own: vLLM and grpc.aio live there, and the actor's methods only
look at it, so that a status is answered while a model is loading.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libs.common.aio import Background
from services.deploy.engines.errors import ModelRefused, ResourcesMissing

_log = logging.getLogger(__name__)

# How often the replica looks whether its engine is still alive.
_WATCH_SECONDS = 1.0
# Calls in flight get this long when the replica is stopped.
_DRAIN_SECONDS = 10.0


@dataclass(frozen=True)
class ReplicaSpec:
    """All that a replica is told. It travels as JSON; the grant is short-lived, and there is no other secret in it.

    Args:
        replica: resource name of the replica.
        audience: what tokens must carry: the deployment, or the replica itself for evaluation.
        model_version: resource name of the model version.
        manifest_digest: SHA-256 of the manifest that the grant opens.
        grant: read grant for the model's files.
        scratch: folder of this replica alone, for the model's files while it loads them.
        pki_dir: folder with ca.crt, replica.crt and replica.key.
        peers: service name to `host:port`.
        otlp: `host:port` of the telemetry receiver; empty: none.
        trace: W3C trace context of whoever asked for the replica.
        host: address to listen on.
        max_model_length: tokens; 0: the model's.
        max_concurrency: calls at once; 0: 32.
        kv_cache_bytes: 0: the engine's default.
        gpus: GPUs of this replica.
        cpus: CPU cores of this replica; 0: 1.
    """

    replica: str
    audience: str
    model_version: str
    manifest_digest: str
    grant: str
    scratch: str
    pki_dir: str
    peers: dict[str, str] = field(default_factory=dict)
    otlp: str = ""
    trace: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    max_model_length: int = 0
    max_concurrency: int = 0
    kv_cache_bytes: int = 0
    gpus: float = 0
    cpus: float = 0


@dataclass
class ReplicaState:
    """What a replica says about itself.

    `state` is STARTING, READY, FAILED or STOPPED; `stage` says for people what it is doing; `permanent` that the same
    start would fail again.
    """

    state: str = "STARTING"
    stage: str = "starting"
    address: str = ""
    context_length: int = 0
    message: str = ""
    permanent: bool = False


class VllmReplica:
    """Starts serving when it is made; every method returns at once except `stop`.

    Args:
        spec: the fields of ReplicaSpec.
    """

    # Its spans and metrics are those of the service `replica`, not of the Ray worker that it runs in.
    own_telemetry = True

    def __init__(self, **spec: Any) -> None:
        self._spec = ReplicaSpec(**spec)
        self._state = ReplicaState()
        self._engine: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replica", daemon=True)
        self._thread.start()

    def status(self) -> dict[str, Any]:
        """The fields of ReplicaState, and `load` once there is an engine."""
        status: dict[str, Any] = dict(vars(self._state))
        engine = self._engine
        if engine is not None:
            status["load"] = dict(vars(engine.load))
        return status

    def stop(self, timeout: float = 30.0) -> None:
        """Refuses new calls, lets the others end, stops the engine and its child process. Stopping twice changes
        nothing.

        Args:
            timeout: seconds to wait for all that.
        """
        self._started.wait(timeout)
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None and self._thread.is_alive():
            loop.call_soon_threadsafe(stopping.set)
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except (ModelRefused, ResourcesMissing) as refusal:
            self._fail(str(refusal), permanent=True)
        except Exception as error:
            _log.exception("the replica failed")
            self._fail(f"{type(error).__name__}: {error}"[:500], permanent=False)
        finally:
            self._started.set()

    def _fail(self, message: str, *, permanent: bool) -> None:
        self._state = ReplicaState(state="FAILED", stage="failed", message=message, permanent=permanent)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._started.set()
        from libs.common.obs import setup_telemetry

        spec = self._spec
        telemetry = setup_telemetry("replica", role="replica", endpoint=spec.otlp, pki_dir=Path(spec.pki_dir))
        try:
            async with Background("replica") as background:
                server = await self._open(background)
                try:
                    await self._watch()
                finally:
                    await server.drain(_DRAIN_SECONDS)
                    await asyncio.to_thread(self._engine.close)
        finally:
            await asyncio.to_thread(telemetry.close)

    async def _open(self, background: Background) -> Any:
        from libs.common.obs import extract, tracer
        from libs.compute.where import ray_attributes
        from services.deploy.engines.model_files import materialise_model, remove_model
        from services.deploy.engines.replica_server import open_server
        from services.deploy.engines.serving import Serving
        from services.deploy.engines.text_engine import EngineOptions, TextEngine

        spec = self._spec
        names = {"argosy.replica": spec.replica, "argosy.model_version": spec.model_version}
        attributes = {**names, **ray_attributes()}
        span = tracer().start_as_current_span
        with span("replica.start", context=extract(spec.trace), attributes=attributes):
            folder = Path(spec.scratch)
            self._state.stage = "fetching model"
            with span("replica.fetch_model"):
                await asyncio.to_thread(materialise_model, spec.grant, spec.manifest_digest, folder)
            self._state.stage = "loading model"
            with span("replica.load_model"):
                options = EngineOptions(
                    spec.max_model_length, spec.max_concurrency, spec.kv_cache_bytes, spec.gpus, spec.cpus
                )
                self._engine = TextEngine.start(folder, options)
            remove_model(folder)
            serving = Serving(self._engine, spec.audience, spec.model_version)
            server = await open_server(spec, serving, background)
        self._state.context_length = self._engine.context_length
        self._state.address = f"{spec.host}:{server.port}"
        self._state.stage = "ready"
        self._state.state = "READY"
        return server

    async def _watch(self) -> None:
        assert self._stopping is not None
        while not self._stopping.is_set():
            if self._engine.failed:
                self._fail("the engine died", permanent=False)
                return
            try:
                await asyncio.wait_for(self._stopping.wait(), _WATCH_SECONDS)
            except TimeoutError:
                continue
        self._state = ReplicaState(state="STOPPED", stage="stopped")
