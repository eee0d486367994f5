"""Whether rows of one dataset version are in another one, asked of dataset by engines of other services."""

from __future__ import annotations

from collections.abc import Callable

from argosy.common.v1 import task_pb2
from argosy.dataset.v1 import dataset_pb2, dataset_service_pb2
from argosy.dataset.v1.dataset_service_pb2_grpc import DatasetServiceStub

from libs.common.errors import ArgosyError
from libs.common.ids import org_of
from libs.common.rpc.client import Channels
from libs.compute.mesh import ended

_DATASET = "dataset"


class ComparisonFailed(ArgosyError):
    """The comparison began, and ended without an answer."""


async def compared(
    channels: Channels, test: str, train: str, text_column: str, stop_if_cancelled: Callable[[], None]
) -> dataset_pb2.LeakageCheck:
    """How many rows of one version another one has too; dataset answers at once what it compared before.

    Args:
        channels: ways of the service that asks.
        test: version whose rows are looked for.
        train: version that they are looked for in.
        text_column: in both.
        stop_if_cancelled: raises when nobody waits for the answer any more.

    Raises:
        ComparisonFailed: with the reason of its task.
        ArgosyError: NOT_FOUND, INVALID_FIELD, PEER_UNAVAILABLE.
    """
    stub, org = channels.stub(DatasetServiceStub, _DATASET), org_of(test)
    asked = dataset_service_pb2.CheckLeakageRequest(name=test, train_version=train, text_column=text_column)
    get = dataset_service_pb2.GetLeakageCheckRequest(name=test, train_version=train, text_column=text_column)
    begun = await stub.CheckLeakage(asked, metadata=await channels.as_service(org))
    task = await ended(channels, _DATASET, begun, stop_if_cancelled)
    if task.state != task_pb2.Task.STATE_SUCCEEDED:
        message = task.error.message or "the comparison was cancelled"
        raise ComparisonFailed(task.error.reason or "CANCELLED", message)
    return await stub.GetLeakageCheck(get, metadata=await channels.as_service(org))
