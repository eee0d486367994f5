"""Background work that fails is not overlooked."""

from __future__ import annotations

import asyncio

import pytest

from libs.common.aio import Background
from libs.common.clock import ManualClock


async def forever(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("ended")


async def fail() -> None:
    await asyncio.sleep(0)
    raise ValueError("broken")


async def test_leaving_ends_everything() -> None:
    ended: list[str] = []
    async with Background("test") as background:
        background.start(forever(ended), name="a")
        background.start(forever(ended), name="b")
        await asyncio.sleep(0)
    assert ended == ["ended", "ended"]


async def test_a_failure_takes_the_rest_down() -> None:
    ended: list[str] = []
    with pytest.raises(ValueError, match="broken"):
        async with Background("test") as background:
            background.start(forever(ended), name="a")
            background.start(fail(), name="b")
            await asyncio.Event().wait()
    assert ended == ["ended"]
    # Nothing of it is left on this task.
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
    await asyncio.sleep(0)


async def test_a_failure_while_the_body_leaves() -> None:
    with pytest.raises(ValueError, match="broken"):
        async with Background("test") as background:
            background.start(fail(), name="a")
            await asyncio.sleep(0)
            await asyncio.sleep(0)


async def test_cancelled_from_outside() -> None:
    ended: list[str] = []

    async def service() -> None:
        async with Background("test") as background:
            background.start(forever(ended), name="a")
            await asyncio.Event().wait()

    task = asyncio.ensure_future(service())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["ended"]


async def test_one_that_swallows_its_cancellation_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libs.common.aio._ASK_AGAIN_SECONDS", 0.01)
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1

    async with asyncio.timeout(5):
        async with Background("test") as background:
            background.start(stubborn(), name="a")
            await asyncio.sleep(0)
    assert swallowed == 2


async def test_a_body_error_stays_what_it_is() -> None:
    with pytest.raises(KeyError):
        async with Background("test") as background:
            background.start(forever([]), name="a")
            raise KeyError


async def test_nothing_starts_outside() -> None:
    background = Background("test")
    with pytest.raises(RuntimeError, match="not running"):
        background.start(fail(), name="a")


async def test_the_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock()
    start = clock.now()
    sleeper = asyncio.ensure_future(clock.sleep(10))
    await asyncio.sleep(0)
    clock.advance(9.9)
    await asyncio.sleep(0)
    assert not sleeper.done()
    clock.advance(0.1)
    await sleeper
    assert (clock.now() - start).total_seconds() == pytest.approx(10)
    assert clock.monotonic() == pytest.approx(10)
