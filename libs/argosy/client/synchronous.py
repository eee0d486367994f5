"""The blocking client."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from argosy.client import contract, downloads, errors, uploads
from argosy.client.contract import Method
from argosy.client.events import EventParser
from argosy.client.policy import Policy
from argosy.client.settings import headers, resolve
from google.protobuf.message import Message


class Area:
    """The methods of one area, such as `client.dataset`."""

    def __init__(self, client: Client, methods: dict[str, Method]) -> None:
        self._client = client
        self._methods = methods

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            method = self._methods[name]
        except KeyError:
            raise AttributeError(f"no such method: {name}; there are {', '.join(sorted(self._methods))}") from None
        call = self._client.stream if method.streams else self._client.call
        return lambda **arguments: call(method, arguments)

    def __dir__(self) -> list[str]:
        return sorted(self._methods)


class Client:
    """Speaks to a gateway.

    Args:
        url: of the gateway; else ARGOSY_URL, else what `argosy login` kept, else http://127.0.0.1:8080.
        api_key: else ARGOSY_API_KEY, else what `argosy login` kept.
        policy: timeouts and repetition.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None, policy: Policy | None = None) -> None:
        self.url, self.api_key = resolve(url, api_key)
        self.policy = policy or Policy()
        # The environment's proxies are for the internet, not for a mesh on this machine.
        self._http = httpx.Client(
            base_url=self.url, headers=headers(self.api_key), timeout=self.policy.timeout, trust_env=False
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections."""
        self._http.close()

    def __getattr__(self, name: str) -> Area:
        if name.startswith("_") or name not in contract.areas():
            raise AttributeError(name)
        return Area(self, contract.areas()[name])

    def call(self, method: Method, arguments: dict[str, Any]) -> Any:
        """Calls a method and gives its answer as a message.

        Raises:
            ApiError: the platform refused, or did not answer for as long as the policy waits.
            TypeError, ValueError: the arguments do not fit the request.
        """
        request = contract.transcode(method, contract.build(method, arguments))
        answer = self.send(
            request.verb, request.path, params=request.query, json=request.json, repeatable=method.repeatable
        )
        return contract.parse(method.answer, answer.json())

    def send(self, verb: str, path: str, *, repeatable: bool, **options: Any) -> httpx.Response:
        """Sends a request, again while it may and should be.

        Args:
            options: of `httpx.Client.request`.
        Raises:
            ApiError: the answer is no success.
        """
        began = time.monotonic()
        for attempt in range(10_000):
            try:
                return self._send_once(verb, path, **options)
            except errors.ApiError as error:
                wait = self.policy.wait(error, attempt, time.monotonic() - began, repeatable)
                if wait is None:
                    raise
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _send_once(self, verb: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(verb, path, **_without_empty(options))
        except httpx.HTTPError as error:
            raise errors.no_answer(self.url, error) from error
        if not answer.is_success:
            raise _error(answer, answer.content)
        return answer

    @contextmanager
    def trace(self) -> Generator[str]:
        """Puts all calls of the block into one trace, and gives its id (32 hexadecimal digits) to look it up with."""
        trace_id = secrets.token_hex(16)
        self._http.headers["traceparent"] = f"00-{trace_id}-{secrets.token_hex(8)}-01"
        try:
            yield trace_id
        finally:
            del self._http.headers["traceparent"]

    def stream(self, method: Method, arguments: dict[str, Any]) -> Iterator[Any]:
        """The messages of a stream. One that breaks goes on behind the last message, if the method can resume.

        Raises:
            ApiError: as `call`.
        """
        request = contract.transcode(method, contract.build(method, arguments))
        options = {"params": request.query, "json": request.json}
        last, attempt, began = "", 0, time.monotonic()
        while True:
            try:
                for message, last_id in self._events(method, request.verb, request.path, last, options):
                    last, attempt, began = last_id or last, 0, time.monotonic()
                    yield message
                return
            except errors.ApiError as error:
                resumes = method.reads and (bool(last) or attempt == 0 or error.status != 0)
                wait = self.policy.wait(error, attempt, time.monotonic() - began, resumes)
                if wait is None:
                    raise
                attempt += 1
                time.sleep(wait)

    def _events(
        self, method: Method, verb: str, path: str, last: str, options: dict[str, Any]
    ) -> Iterator[tuple[Message, str]]:
        sent = {"accept": "text/event-stream", **({"last-event-id": last} if last else {})}
        # A quiet stream is kept alive by comments, every ten seconds.
        timeout = httpx.Timeout(self.policy.timeout, read=60.0)
        parser = EventParser()
        try:
            with self._http.stream(verb, path, headers=sent, timeout=timeout, **_without_empty(options)) as answer:
                if not answer.is_success:
                    raise _error(answer, answer.read())
                for line in answer.iter_lines():
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

    def stream_bytes(self, verb: str, path: str, **options: Any) -> Iterator[bytes]:
        """The bytes of a file as they come.

        Args:
            options: of `httpx.Client.stream`.
        Raises:
            ApiError: the answer is no success, or broke.
        """
        sent = {"accept": "application/octet-stream"}
        timeout = httpx.Timeout(self.policy.timeout, read=60.0)
        try:
            with self._http.stream(verb, path, headers=sent, timeout=timeout, **_without_empty(options)) as answer:
                if not answer.is_success:
                    raise _error(answer, answer.read())
                yield from answer.iter_bytes()
        except httpx.HTTPError as error:
            raise errors.no_answer(self.url, error) from error

    def pages(self, method: Method, arguments: dict[str, Any], limit: int | None = None) -> Iterator[Any]:
        """Every item of a list, page by page.

        Args:
            limit: of items; None: all.
        """
        field = contract.items_field(method)
        if field is None:
            raise TypeError(f"{method.name}() does not list")
        given, token = 0, arguments.get("page_token", "")
        while True:
            page = self.call(method, {**arguments, "page_token": token})
            for item in getattr(page, field.name):
                yield item
                given += 1
                if limit is not None and given >= limit:
                    return
            token = page.next_page_token
            if not token:
                return

    def upload(
        self,
        parent: str,
        file: Path,
        *,
        upload_id: str = "",
        request_id: str = "",
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """Uploads a file in parts and commits it. One that was begun under the same `upload_id` goes on where it
        stands.

        Args:
            parent: `orgs/{org}`.
            upload_id: last part of its name; empty: chosen by the service, and not resumable by another process.
            request_id: of its creation.
            progress: gets bytes that have arrived, and bytes in all.
        Returns:
            the committed `argosy.dataset.v1.Upload`.
        Raises:
            ApiError: the upload was refused, or expired.
        """
        # As a file of this tree the class is libs.argosy.client.Client to the checker.
        return uploads.upload(self, parent, file, upload_id=upload_id, request_id=request_id, progress=progress)  # pyrefly: ignore[bad-argument-type]

    def download(
        self,
        method: Method,
        arguments: dict[str, Any],
        target: Path,
        *,
        size: int,
        sha256: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Fetches a file whose size and digest are known. What an earlier call has fetched of it is not fetched again;
        `target` appears complete and checked, or not at all.

        Args:
            method: that streams the bytes of a file from `offset` on.
            arguments: of the method, without `offset`.
            target: where the file goes.
            size: bytes of the whole file.
            sha256: of the whole file, in hexadecimal.
            progress: gets bytes that have arrived, and bytes in all.
        Raises:
            ApiError: it was refused, did not come, or is not what was promised.
            OSError: it cannot be written.
        """
        downloads.download(self, method, arguments, target, size=size, sha256=sha256, progress=progress)  # pyrefly: ignore[bad-argument-type]


def _without_empty(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _error(answer: httpx.Response, body: bytes) -> errors.ApiError:
    return errors.from_answer(
        answer.status_code, body, answer.headers.get("x-request-id", ""), answer.headers.get("retry-after")
    )
