"""Uploading a file in parts, each with its place, so that a broken upload goes on where it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from argosy.client import contract
from argosy.client.errors import Conflict, InvalidRequest

if TYPE_CHECKING:
    from argosy.client.synchronous import Client

# What the gateway hands on in one piece.
PART_BYTES = 8 * 1024 * 1024


def upload(
    client: Client,
    parent: str,
    file: Path,
    *,
    upload_id: str,
    request_id: str,
    progress: Callable[[int, int], None] | None,
) -> Any:
    """See `Client.upload`."""
    size = file.stat().st_size
    state = _open(client, parent, file, size, upload_id, request_id)
    digest = hashlib.sha256()
    if state.state == state.STATE_COMMITTED:
        return state
    for start, part in _parts(file):
        digest.update(part)
        # What has arrived is only hashed, for the digest of the whole.
        if start + len(part) > state.offset:
            state = _put(client, state.name, start, part, state.offset)
        if progress:
            progress(state.offset, size)
    return client.dataset.commit_upload(name=state.name, sha256=digest.hexdigest(), request_id=f"commit-{state.uid}")


def _open(client: Client, parent: str, file: Path, size: int, upload_id: str, request_id: str) -> Any:
    try:
        return client.dataset.create_upload(
            parent=parent, upload_id=upload_id, file_name=file.name, size=size, request_id=request_id or None
        )
    except Conflict:
        state = client.dataset.get_upload(name=f"{parent}/uploads/{upload_id}")
        if state.size not in (0, size):
            raise
        return state


def _parts(file: Path) -> Iterator[tuple[int, bytes]]:
    start = 0
    with file.open("rb") as source:
        while part := source.read(PART_BYTES):
            yield start, part
            start += len(part)


def _put(client: Client, name: str, start: int, part: bytes, offset: int) -> Any:
    """Sends what of a part has not arrived; a part whose answer was lost has, so the upload is asked where it
    stands.
    """
    answer = contract.areas()["dataset"]["get_upload"].answer
    while True:
        rest = part[offset - start :]
        if not rest:
            return client.dataset.get_upload(name=name)
        header = {"content-range": f"bytes {offset}-{start + len(part) - 1}/*", "content-type": _BYTES}
        try:
            done = client.send("PUT", f"/v1/{name}", content=rest, headers=header, repeatable=True)
        except InvalidRequest as error:
            received = error.metadata.get("received") or error.metadata.get("offset")
            if error.reason != "OFFSET_MISMATCH" or received is None:
                raise
            now = client.dataset.get_upload(name=name).offset
            if not start <= now <= start + len(part) or now == offset:
                raise
            offset = now
            continue
        return contract.parse(answer, done.json())


_BYTES = "application/octet-stream"
