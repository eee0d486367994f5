"""The other services of the mesh, for engines that ask them something.

An engine has no service runtime: it shows the certificate of its service and gets its tokens from identity itself, so
that no credential has to travel with the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from argosy.common.v1 import task_pb2, task_service_pb2
from argosy.common.v1.task_service_pb2_grpc import TaskServiceStub

from libs.common.config import CommonSettings
from libs.common.errors import ArgosyError
from libs.common.ids import org_of
from libs.common.rpc.client import Channels
from libs.compute.context import EngineInterrupted

_BEAT_SECONDS = 0.5
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True)
class MeshAccess:
    """Where the mesh is, as the task's spec carries it. No secret is in it."""

    pki_dir: str
    home: str
    peers: dict[str, str]

    @classmethod
    def of(cls, settings: CommonSettings) -> MeshAccess:
        """The mesh of a service."""
        return cls(str(settings.pki_dir), str(settings.home), dict(settings.peers))

    @asynccontextmanager
    async def channels(self, service: str) -> AsyncGenerator[Channels]:
        """The ways of a service to the others, closed at the end.

        Raises:
            EngineInterrupted: a peer stayed away; another attempt may find it.
        """
        settings = CommonSettings(home=Path(self.home), pki_dir=Path(self.pki_dir), peers=self.peers)
        channels = Channels(settings, service)
        try:
            yield channels
        except ArgosyError as error:
            if error.code not in _PASSING:
                raise
            raise EngineInterrupted(error.message) from error
        finally:
            await channels.close()


async def ended(
    channels: Channels, service: str, task: task_pb2.Task, stop_if_cancelled: Callable[[], None]
) -> task_pb2.Task:
    """A task of another service as it is when it has ended.

    Args:
        channels: ways of the service that asked for the task.
        service: whose task it is.
        task: as it was last seen.
        stop_if_cancelled: raises when nobody waits for it any more.
    """
    tasks, request = channels.stub(TaskServiceStub, service), task_service_pb2.GetTaskRequest(name=task.name)
    while task.state < task_pb2.Task.STATE_SUCCEEDED:
        stop_if_cancelled()
        await asyncio.sleep(_BEAT_SECONDS)
        task = await tasks.GetTask(request, metadata=await channels.as_service(org_of(task.name)))
    return task
