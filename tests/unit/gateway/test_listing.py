"""Pages of OpenAI's lists: no more is read than a page needs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from libs.common.errors import ArgosyError
from services.gateway.http.openai.errors import ParameterError
from services.gateway.http.openai.listing import Listing, first


async def numbers(read: list[int]) -> AsyncIterator[int]:
    for number in range(100):
        read.append(number)
        yield number


async def test_a_page_is_all_that_is_read() -> None:
    read: list[int] = []
    assert await Listing("", 3).page(numbers(read)) == ([0, 1, 2], True)
    # The fourth says that there are more.
    assert len(read) == 4
    read.clear()
    assert await first(3, numbers(read)) == [0, 1, 2]
    assert len(read) == 3
    assert await Listing("", 100).page(numbers([])) == ([*range(100)], False)


async def test_what_a_list_stands_behind_must_be_there() -> None:
    async def nothing() -> AsyncIterator[int]:
        raise ArgosyError("NOT_FOUND", "no such thing")
        yield 0

    with pytest.raises(ParameterError):
        await Listing("file-x", 3).page(nothing())
    with pytest.raises(ArgosyError, match="no such thing"):
        await Listing("", 3).page(nothing())
