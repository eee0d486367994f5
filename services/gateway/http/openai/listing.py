"""Lists as OpenAI pages them: `after` names the last object that the caller has seen."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

from libs.common.errors import ArgosyError
from services.gateway.http.json_message import Faults
from services.gateway.http.openai.errors import ParameterError
from services.gateway.http.transcode import parse_query

Json = dict[str, Any]
T = TypeVar("T")

_NUMBER = re.compile(r"[0-9]{1,6}\Z")


@dataclass(frozen=True)
class Listing:
    """What a request for a list asks for.

    Attributes:
        after: id of the last object of the page before; empty: from the first.
        limit: objects at most.
        others: the other parameters of the query.
    """

    after: str
    limit: int
    others: Mapping[str, str] = field(default_factory=dict)

    async def page(self, found: AsyncIterator[T]) -> tuple[list[T], bool]:
        """The objects of the page, and whether more come after it.

        Args:
            found: the objects behind `after`; no more are taken than are needed. NOT_FOUND: there is no such object.

        Raises:
            ParameterError: `after` is not in the list.
        """
        page: list[T] = []
        try:
            async for one in found:
                if len(page) == self.limit:
                    return page, True
                page.append(one)
        except ArgosyError as error:
            if self.after and error.is_reason("NOT_FOUND"):
                raise self.unknown() from error
            raise
        return page, False

    def unknown(self) -> ParameterError:
        """What is said of an `after` that is not in the list."""
        return ParameterError("after", f"after: there is no {self.after[:128]!r} in this list.")


def parse_listing(
    query: bytes, *, usual: int, most: int, others: Sequence[str] = (), metadata: bool = False
) -> Listing:
    """The parameters of a list.

    Args:
        query: what stands behind the question mark.
        usual: objects on a page when `limit` is not given.
        most: that `limit` may ask for.
        others: names of further parameters.
        metadata: whether `metadata[key]=value` is one.

    Raises:
        ParameterError: A parameter is unknown, given twice or out of range.
    """
    faults = Faults()
    given = parse_query(query, faults)
    faults.raise_if_any()
    values: dict[str, str] = {}
    for name, found in given.items():
        known = name in ("after", "limit", *others) or (metadata and name.startswith("metadata[") and name[-1] == "]")
        if not known:
            raise ParameterError(name[:64], f"Unknown parameter: {name[:64]!r}.", "unknown_parameter")
        if len(found) > 1:
            raise ParameterError(name[:64], f"{name[:64]}: is given more than once.")
        values[name] = found[0]
    limit = values.pop("limit", str(usual))
    if not _NUMBER.match(limit) or not 1 <= int(limit) <= most:
        raise ParameterError("limit", f"limit: must be a whole number between 1 and {most}.")
    return Listing(values.pop("after", ""), int(limit), values)


async def first(count: int, found: AsyncIterator[T]) -> list[T]:
    """At most so many of what comes; no more are taken."""
    taken: list[T] = []
    async for one in found:
        taken.append(one)
        if len(taken) == count:
            break
    return taken


def list_body(data: Sequence[Json], has_more: bool) -> bytes:
    """The JSON of a page."""
    ids = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return orjson.dumps({"object": "list", "data": data, "has_more": has_more, **ids})
