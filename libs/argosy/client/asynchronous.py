"""The client for asyncio: the same calls, awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
from argosy.client import contract, errors
from argosy.client.contract import Method
from argosy.client.events import EventParser
from argosy.client.policy import Policy
from argosy.client.settings import headers, resolve


class AsyncArea:
    """The methods of one area, such as `client.dataset`."""

    def __init__(self, client: AsyncClient, methods: dict[str, Method]) -> None:
        self._client = client
        self._methods = methods

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            method = self._methods[name]
        except KeyError:
            raise AttributeError(f"no such method: {name}; there are {', '.join(sorted(self._methods))}") from None
        call: Callable[[Method, dict[str, Any]], Any] = self._client.stream if method.streams else self._client.call
        return lambda **arguments: call(method, arguments)

    def __dir__(self) -> list[str]:
        return sorted(self._methods)


class AsyncClient:
    """Speaks to a gateway. Arguments as those of `Client`."""

    def __init__(self, url: str | None = None, api_key: str | None = None, policy: Policy | None = None) -> None:
        self.url, self.api_key = resolve(url, api_key)
        self.policy = policy or Policy()
        self._http = httpx.AsyncClient(
            base_url=self.url, headers=headers(self.api_key), timeout=self.policy.timeout, trust_env=False
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections."""
        await self._http.aclose()

    def __getattr__(self, name: str) -> AsyncArea:
        if name.startswith("_") or name not in contract.areas():
            raise AttributeError(name)
        return AsyncArea(self, contract.areas()[name])

    async def call(self, method: Method, arguments: dict[str, Any]) -> Any:
        """As `Client.call`."""
        request = contract.transcode(method, contract.build(method, arguments))
        answer = await self.send(
            request.verb, request.path, params=request.query, json=request.json, repeatable=method.repeatable
        )
        return contract.parse(method.answer, answer.json())

    async def send(self, verb: str, path: str, *, repeatable: bool, **options: Any) -> httpx.Response:
        """As `Client.send`."""
        began = time.monotonic()
        attempt = 0
        while True:
            try:
                return await self._send_once(verb, path, **options)
            except errors.ApiError as error:
                wait = self.policy.wait(error, attempt, time.monotonic() - began, repeatable)
                if wait is None:
                    raise
                attempt += 1
                await asyncio.sleep(wait)

    async def _send_once(self, verb: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = await self._http.request(verb, path, **_without_empty(options))
        except httpx.HTTPError as error:
            raise errors.no_answer(self.url, error) from error
        if not answer.is_success:
            raise _error(answer, answer.content)
        return answer

    async def stream(self, method: Method, arguments: dict[str, Any]) -> AsyncIterator[Any]:
        """As `Client.stream`."""
        request = contract.transcode(method, contract.build(method, arguments))
        options = {"params": request.query, "json": request.json}
        last, attempt, began = "", 0, time.monotonic()
        while True:
            try:
                async for message, last_id in self._events(method, request.verb, request.path, last, options):
                    last, attempt, began = last_id or last, 0, time.monotonic()
                    yield message
                return
            except errors.ApiError as error:
                resumes = method.reads and (bool(last) or attempt == 0 or error.status != 0)
                wait = self.policy.wait(error, attempt, time.monotonic() - began, resumes)
                if wait is None:
                    raise
                attempt += 1
                await asyncio.sleep(wait)

    async def _events(
        self, method: Method, verb: str, path: str, last: str, options: dict[str, Any]
    ) -> AsyncIterator[tuple[Any, str]]:
        sent = {"accept": "text/event-stream", **({"last-event-id": last} if last else {})}
        timeout = httpx.Timeout(self.policy.timeout, read=60.0)
        parser = EventParser()
        try:
            async with self._http.stream(
                verb, path, headers=sent, timeout=timeout, **_without_empty(options)
            ) as answer:
                if not answer.is_success:
                    raise _error(answer, await answer.aread())
                async for line in answer.aiter_lines():
                    event = parser.feed(line)
                    if event is None:
                        continue
                    if event.kind == "end":
                        return
                    if event.kind == "error":
                        raise errors.from_answer(errors.status_of(event.data), event.data.encode())
                    yield contract.parse(method.answer, contract.loads(event.data)), event.id
        except httpx.HTTPError as error:
            raise errors.no_answer(self.url, error) from error
        raise errors.no_answer(self.url, EOFError("the stream was cut"))


def _without_empty(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _error(answer: httpx.Response, body: bytes) -> errors.ApiError:
    return errors.from_answer(
        answer.status_code, body, answer.headers.get("x-request-id", ""), answer.headers.get("retry-after")
    )
