"""The asynchronous side of the driver: starts the child process that holds Ray and speaks JSON lines with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class CarrierReport:
    """What `poll` says about a carrier.

    Attributes:
        state: `pending` (not yet answering), `running`, `succeeded`, `failed`, `cancelled` or `lost` (no such actor).
        events: Log lines and metrics after the acknowledged one: `{"cursor", "kind": "log"|"metrics", "time", ...}`.
        progress: `{"fraction", "message", "cost"}` or None.
        checkpoint: The newest checkpoint, or None.
        result: What the engine returned, when it succeeded.
        error: `{"reason", "message", "metadata", "retryable"}`, when it failed.
    """

    state: str
    events: list[Json] = field(default_factory=list)
    progress: Json | None = None
    checkpoint: Json | None = None
    result: Json | None = None
    error: Json | None = None


class RayDriver:
    """Ray without importing it. The child starts at the first call and goes when it is idle."""

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
        raise NotImplementedError

    async def poll(self, name: str, cursor: int = 0) -> CarrierReport:
        """What the carrier did after event `cursor`, which it then forgets."""
        raise NotImplementedError

    async def cancel(self, name: str) -> None:
        """Asks the engine to stop."""
        raise NotImplementedError

    async def dismiss(self, name: str) -> None:
        """Ends the carrier, whatever it does. Nothing happens when it is gone."""
        raise NotImplementedError

    async def start_actor(
        self, name: str, class_path: str, kwargs: Json, resources: Mapping[str, float] | None = None
    ) -> None:
        """Starts a detached actor of `package.module:Class` under `name`, or finds the one that has it already.

        Args:
            kwargs: Arguments of the constructor, as JSON.
            resources: `num_cpus`, `num_gpus`, `memory`, `max_concurrency` and custom resources.
        """
        raise NotImplementedError

    async def call(self, name: str, method: str, kwargs: Json | None = None, timeout: float = 10.0) -> Any:
        """Calls a method of a named actor; the answer must be JSON.

        Raises:
            ComputeLost: The actor is gone.
            ComputeTimeout: It did not answer in `timeout` seconds (it may still be starting).
            EngineError: The method raised.
            ComputeUnavailable: Ray does not answer.
        """
        raise NotImplementedError

    async def kill(self, name: str) -> None:
        """Kills a named actor. Nothing happens when it is gone."""
        raise NotImplementedError

    async def alive(self, name: str) -> bool:
        """Whether Ray knows a living (or starting) actor of that name."""
        raise NotImplementedError

    async def list(self, prefix: str = "") -> list[str]:
        """Names of the actors in Argosy's namespace."""
        raise NotImplementedError

    async def close(self) -> None:
        """Ends the child. Actors stay."""
        raise NotImplementedError
