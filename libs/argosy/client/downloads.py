"""Fetching a file whose size and digest are known: in a stream, resumed where it broke, in place only when complete."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from argosy.client import contract, errors
from argosy.client.contract import Method

if TYPE_CHECKING:
    from argosy.client.synchronous import Client

_CHUNK = 1024 * 1024


class Damaged(errors.ApiError):
    """The bytes that arrived are not those that were promised."""


def download(
    client: Client,
    method: Method,
    arguments: dict[str, Any],
    target: Path,
    *,
    size: int,
    sha256: str,
    progress: Callable[[int, int], None] | None,
) -> None:
    """See `Client.download`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Named by its content, so that what an earlier command left is taken up if, and only if, it is the same file.
    part = target.with_name(f".{target.name}.{sha256[:16]}.part")
    digest = hashlib.sha256()
    with part.open("a+b") as file:
        have = _taken_up(file, digest, size)
        for chunk in _rest(client, method, arguments, have, size):
            file.write(chunk)
            digest.update(chunk)
            have += len(chunk)
            if progress:
                progress(have, size)
        file.flush()
        os.fsync(file.fileno())
    if have != size or digest.hexdigest() != sha256:
        part.unlink()
        found = f"{have:,} bytes with the SHA-256 {digest.hexdigest()}"
        raise Damaged(0, "DIGEST_MISMATCH", f"{target.name}: {found} arrived instead of {size:,} with {sha256}")
    part.replace(target)


def _taken_up(file: Any, digest: Any, size: int) -> int:
    """Hashes what is there already; says how much it is. More than the whole is nothing of ours."""
    file.seek(0)
    have = 0
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        have += len(chunk)
    if have > size:
        raise Damaged(0, "DIGEST_MISMATCH", f"{file.name} is larger than the file that it is a part of; remove it")
    return have


def _rest(client: Client, method: Method, arguments: dict[str, Any], have: int, size: int) -> Iterator[bytes]:
    """The bytes from `have` on, however often the stream breaks while the policy is patient."""
    attempt, began = 0, time.monotonic()
    while have < size:
        request = contract.transcode(method, contract.build(method, {**arguments, "offset": have}))
        try:
            for chunk in client.stream_bytes(request.verb, request.path, params=request.query):
                have, attempt, began = have + len(chunk), 0, time.monotonic()
                yield chunk
            if have < size:
                raise errors.no_answer(client.url, EOFError("the stream was cut"))
        except errors.ApiError as error:
            wait = client.policy.wait(error, attempt, time.monotonic() - began, True)
            if wait is None:
                raise
            attempt += 1
            time.sleep(wait)
