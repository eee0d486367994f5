"""Whether the held-out rows of a run are among those that it learns from, asked of dataset."""

from __future__ import annotations

import asyncio

from argosy.dataset.v1 import dataset_pb2

from libs.common.errors import ArgosyError
from libs.compute.context import EngineContext, EngineError
from libs.compute.leakage import compared
from libs.compute.mesh import MeshAccess
from services.training.domain.leakage import Leakage
from services.training.domain.spec import TrainingSpec
from services.training.engines.data import Source


async def leaked_share(ctx: EngineContext, spec: TrainingSpec, heldout: Source) -> float | None:
    """Compares the held-out version with the version to learn from, by every text column that a phase reads.

    Args:
        ctx: its `spec` has `comparison`: `test` and `train` (names of versions) and `mesh` (`MeshAccess`).
        heldout: the held-out version; columns without a text in it are left out, as no loss comes from them.

    Returns:
        The largest share of the held-out rows, 0 to 1; None if no held-out row has a text.

    Raises:
        EngineError: PREFLIGHT_FAILED, when too many rows are in both, or the versions could not be compared.
        EngineInterrupted: dataset stayed away.
        EngineCancelled: The task was cancelled.
    """
    asked = ctx.spec["comparison"]
    columns = await asyncio.to_thread(heldout.columns_with_text, [phase.columns[0] for phase in spec.phases])
    try:
        async with MeshAccess(**asked["mesh"]).channels("training") as channels:
            found = [
                _leakage(column, await compared(channels, asked["test"], asked["train"], column, ctx.stop_if_cancelled))
                for column in columns
            ]
    except ArgosyError as error:
        message = f"The validation version could not be compared with the dataset version: {error.message}"
        raise _refused(message, retryable=True) from error
    for leakage in found:
        if leakage.fault:
            raise _refused(leakage.fault)
    return max((leakage.leaked_share for leakage in found), default=None)


def _leakage(text_column: str, found: dataset_pb2.LeakageCheck) -> Leakage:
    return Leakage(text_column, found.test_rows, found.exact_rows + found.near_rows, found.leaked_share)


def _refused(message: str, *, retryable: bool = False) -> EngineError:
    return EngineError("PREFLIGHT_FAILED", message, retryable=retryable, check="leakage", detail=message)
