"""Where replicas run: Ray actors, looked at through Ray and, while Ray is away, through their own port."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from argosy.deploy.v1 import inference_service_pb2, inference_service_pb2_grpc

from libs.common.domain import DomainError
from libs.common.errors import ArgosyError
from libs.common.obs import extract, inject, tracer
from libs.common.rpc.client import Channels
from libs.compute.context import EngineError
from libs.compute.errors import ComputeLost, ComputeTimeout, ComputeUnavailable
from services.deploy.clients.training import Training
from services.deploy.config import DeploySettings
from services.deploy.domain.replica import Replica

_CLASS = "services.deploy.engines.replica:VllmReplica"
# The files are read once, at the start; waiting for resources may take its time.
_GRANT_SECONDS = 3600
_LOOK_SECONDS = 3.0
_STOP_SECONDS = 30.0
_PORT_SECONDS = 2.0
# One actor serves many status calls beside a stop.
_ACTOR_CONCURRENCY = 8


@dataclass(frozen=True)
class Observation:
    """What was seen of a replica.

    Attributes:
        state: STARTING, READY, FAILED (it said so), GONE (nothing of it is left) or UNKNOWN (nobody could be asked).
        permanent: the same start would fail again.
    """

    STARTING: ClassVar[str] = "STARTING"
    READY: ClassVar[str] = "READY"
    FAILED: ClassVar[str] = "FAILED"
    GONE: ClassVar[str] = "GONE"
    UNKNOWN: ClassVar[str] = "UNKNOWN"

    state: str
    address: str = ""
    context_length: int = 0
    message: str = ""
    permanent: bool = False


class ActorDriver(Protocol):
    """The part of `libs.compute.client.RayDriver` that replicas use."""

    async def start_actor(
        self, name: str, class_path: str, kwargs: dict[str, Any], resources: dict[str, float] | None = None
    ) -> None: ...

    # ASYNC109: the time is the actor's own.
    async def call(
        self,
        name: str,
        method: str,
        kwargs: dict[str, Any] | None = None,
        timeout: float = 10.0,  # noqa: ASYNC109
    ) -> Any: ...

    async def kill(self, name: str) -> None: ...


class ReplicaHost:
    """Starts, looks at and stops replicas.

    Args:
        driver: Ray.
        training: grants the model's files.
        channels: ways to the replicas' ports.
        settings: of deploy.
    """

    def __init__(self, driver: ActorDriver, training: Training, channels: Channels, settings: DeploySettings) -> None:
        self._driver = driver
        self._training = training
        self._channels = channels
        self._settings = settings

    async def start(self, replica: Replica) -> None:
        """Asks Ray for the actor, in the trace of whoever asked for the replica. An actor of its name that lives is
        kept.

        Raises:
            ArgosyError, DomainError: training or Ray is away.
        """
        attributes = {"argosy.replica": replica.name, "argosy.model_version": replica.model_version}
        context = extract({"traceparent": replica.traceparent})
        with tracer().start_as_current_span("deploy.start_replica", context=context, attributes=attributes):
            granted = await self._training.grant_read(replica.model_version, replica.name, _GRANT_SECONDS)
            if granted.manifest_digest != replica.model_digest:
                message = f"{replica.model_version} has other files than those that were approved."
                raise DomainError("PREFLIGHT_FAILED", message, check="digest", detail=granted.manifest_digest)
            if replica.failures:
                # What is left of the last start must not be taken for the new one.
                await self._driver.kill(replica.actor)
            await self._driver.start_actor(
                replica.actor, _CLASS, self._arguments(replica, granted.grant), _resources(replica)
            )

    def _arguments(self, replica: Replica, grant: str) -> dict[str, Any]:
        settings, spec = self._settings, replica.spec
        return {
            "replica": replica.name,
            "audience": replica.audience,
            "model_version": replica.model_version,
            "manifest_digest": replica.model_digest,
            "grant": grant,
            "scratch": str(Path(settings.home) / "run" / "replicas" / replica.uid),
            "pki_dir": str(settings.pki_dir),
            "peers": {name: settings.peers[name] for name in ("identity",) if name in settings.peers},
            "otlp": settings.otlp,
            "trace": inject(),
            "host": settings.replica_host,
            "max_model_length": spec.max_model_length,
            "max_concurrency": spec.max_concurrency,
            "kv_cache_bytes": spec.kv_cache_bytes,
            "gpus": spec.gpus,
            "cpus": spec.cpus,
        }

    async def look(self, replica: Replica) -> Observation:
        """What the replica says, or what is known without it."""
        try:
            status = await self._driver.call(replica.actor, "status", timeout=_LOOK_SECONDS)
        except ComputeLost:
            return Observation(Observation.GONE, message="its process died")
        except ComputeTimeout:
            return await self._ask_port(replica, "waiting for compute")
        except ComputeUnavailable as error:
            return await self._ask_port(replica, error.message)
        except EngineError as error:
            return Observation(Observation.FAILED, message=error.message)
        if status["state"] == "STOPPED":
            return Observation(Observation.GONE, message="its process stopped")
        return Observation(
            status["state"],
            status["address"],
            status["context_length"],
            status["message"] or status["stage"],
            status["permanent"],
        )

    async def _ask_port(self, replica: Replica, message: str) -> Observation:
        """Ray cannot say. A replica that answers on its port serves; one that was ready and does not answer is gone."""
        if not replica.address:
            return Observation(Observation.UNKNOWN, message=message)
        stub = self._channels.stub(inference_service_pb2_grpc.InferenceServiceStub, "replica", address=replica.address)
        try:
            await stub.GetReplicaStatus(inference_service_pb2.GetReplicaStatusRequest(), timeout=_PORT_SECONDS)
        except ArgosyError as error:
            return Observation(Observation.GONE, message=f"its port does not answer: {error.message}")
        return Observation(Observation.READY, replica.address, replica.context_length)

    async def stop(self, replica: Replica) -> None:
        """Lets calls in flight end, stops the engine with its child processes, ends the actor.

        Raises:
            DomainError: COMPUTE_UNAVAILABLE, nobody knows whether it still runs.
        """
        try:
            # One that has not been started yet, or waits for resources, does not answer: it is ended at once.
            await self._driver.call(replica.actor, "status", timeout=_LOOK_SECONDS)
            await self._driver.call(
                replica.actor, "stop", {"timeout": _STOP_SECONDS}, timeout=_STOP_SECONDS + _LOOK_SECONDS
            )
        except (ComputeLost, ComputeTimeout, EngineError):
            pass
        await self.kill(replica, replica.address)

    async def kill(self, replica: Replica, address: str) -> None:
        """Ends whatever is left of the actor. Harmless when there is nothing.

        Args:
            address: where it was reached; empty: nowhere.
        """
        if address:
            await self._channels.drop("replica", address)
        await self._driver.kill(replica.actor)


def _resources(replica: Replica) -> dict[str, float]:
    spec = replica.spec
    resources: dict[str, float] = {"num_cpus": spec.cpus, "max_concurrency": _ACTOR_CONCURRENCY}
    if spec.gpus:
        resources["num_gpus"] = spec.gpus
    if spec.memory_bytes:
        resources["memory"] = spec.memory_bytes
    return resources
