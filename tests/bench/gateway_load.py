"""Closed-loop load over plain HTTP/1.1 with kept connections: python -m tests.bench.gateway_load '<json arguments>'.

Speaks the protocol by hand, because a client library would cost the core of the generator more than the gateway costs
the other.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length: "


class _Connection(asyncio.Protocol):
    """Sends the same request again and again; counts answers that are 200 and hold `expected`."""

    def __init__(self, request: bytes, expected: bytes, until: float, done: asyncio.Event) -> None:
        self._request = request
        self._expected = expected
        self._until = until
        self._done = done
        self._buffer = b""
        self._sent = 0.0
        self.latencies: list[float] = []
        self.errors: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(_END_OF_HEAD)
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(_LENGTH)
        length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + len(_END_OF_HEAD) + length:
            return
        now = time.perf_counter()
        if head[9:12] == b"200" and self._expected in self._buffer:
            self.latencies.append(now - self._sent)
        else:
            self.errors.append(self._buffer[:300].decode("utf-8", "replace"))
        self._buffer = b""
        if now < self._until and len(self.errors) < 10:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done.set()


async def _run(port: int, path: str, body: str, key: str, connections: int, seconds: float, expected: str) -> dict:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body.encode())}\r\n\r\n"
    )
    request = (head + body).encode()
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    made = []
    for _ in range(connections):
        done = asyncio.Event()
        _, connection = await loop.create_connection(
            lambda done=done: _Connection(request, expected.encode(), began + seconds, done), "127.0.0.1", port
        )
        made.append((connection, done))
    for _, done in made:
        await done.wait()
    wall = time.perf_counter() - began
    latencies = sorted(latency for connection, _ in made for latency in connection.latencies)
    errors = [error for connection, _ in made for error in connection.errors]
    count = len(latencies)
    return {
        "requests": count,
        "errors": len(errors),
        "first_error": errors[0] if errors else "",
        "seconds": wall,
        "per_second": count / wall,
        "p50_ms": latencies[count // 2] * 1000 if count else None,
        "p99_ms": latencies[min(count - 1, count * 99 // 100)] * 1000 if count else None,
        "generator_busy": time.process_time() / wall,
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(_run(**json.loads(sys.argv[1])))))
