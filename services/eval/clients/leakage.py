"""How much of the test rows a model has learned from, asked of dataset. Runs inside the engine, as `replicas` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from libs.common.errors import ArgosyError
from libs.common.rpc.client import Channels
from libs.compute.leakage import ComparisonFailed, compared
from services.eval.domain.evaluations import Leakage

# What no repetition would change: a version is gone, or lacks the column.
_NOT_COMPARABLE = ("NOT_FOUND", "INVALID_FIELD")


async def leakage_of(
    channels: Channels, test: str, trained_on: Sequence[str], text_column: str, stop_if_cancelled: Callable[[], None]
) -> list[Leakage]:
    """What dataset says about a test version and each version that the model was trained on.

    Args:
        channels: ways of the service eval.
        test: version with the test rows.
        trained_on: versions, in the order of the answers.
        text_column: column with the input, in all of them.
        stop_if_cancelled: raises when the evaluation is to end.
    """
    return [await _leakage(channels, test, train, text_column, stop_if_cancelled) for train in trained_on]


async def _leakage(
    channels: Channels, test: str, train: str, text_column: str, stop_if_cancelled: Callable[[], None]
) -> Leakage:
    try:
        found = await compared(channels, test, train, text_column, stop_if_cancelled)
    except ComparisonFailed as error:
        return Leakage(train, problem=error.message)
    except ArgosyError as error:
        if not error.is_reason(*_NOT_COMPARABLE):
            raise
        return Leakage(train, problem=error.message)
    return Leakage(train, found.test_rows, found.exact_rows, found.near_rows, found.leaked_share)
