"""The blob store: bytes under their SHA-256, in a folder or a bucket, encrypted when it has a key.

A blob is written under no name, hashed on the way, made durable, and only then named
`blobs/ab/<sha256>.<label>.<raw|enc>`; so a name that exists stands for complete bytes. The label says who wrote it:
`own` for the service, a hash of its prefix for the holder of a write grant.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from libs.common.blobs import frames
from libs.common.blobs.folder import Folder, storage_errors
from libs.common.blobs.garbage import GivenUp, files_beside, live_blobs, without_grace
from libs.common.blobs.grants import Grant, GrantedFile, expiry, label_of
from libs.common.blobs.manifest import Json, canonical, is_digest, manifest_digests
from libs.common.clock import Clock, SystemClock
from libs.common.domain import DomainError
from libs.common.secrets import Keyring, SecretError

Source = bytes | Path | Iterable[bytes] | AsyncIterator[bytes]

CHUNK = 1 << 20
_OWN = "own"
# Of a manifest: three million files. What could not be read again is never stored.
_MANIFEST_LIMIT = 256 << 20


@dataclass(frozen=True)
class Blob:
    """What `put` gives back: SHA-256 in lower-case hexadecimal, size in bytes."""

    sha256: str
    size: int

    def entry(self, path: str) -> Json:
        """What a manifest says of it: the file at a path below the manifest's folder."""
        return {"path": path, "sha256": self.sha256, "size": self.size}


@dataclass(frozen=True)
class _File:
    """Where the bytes of a blob lie: key and header length are set when the file is encrypted."""

    path: str
    size: int
    key: bytes | None = None
    header: int = 0


class BlobStore:
    """Content-addressed bytes. Methods are coroutines; each has a blocking twin `..._sync` for engines.

    Args:
        root_url: `file:///...`, `s3://bucket/prefix`, ...
        key: Key ring that encrypts at rest; None: plain files.
        clock: For the life of grants and the grace time of the garbage collector.

    Raises:
        DomainError: NOT_FOUND, GRANT_DENIED, STORAGE_FULL, STORAGE_UNAVAILABLE from every method.
    """

    def __init__(self, root_url: str, key: Keyring | None = None, *, clock: Clock | None = None) -> None:
        self._folder = Folder(root_url)
        self._keyring = key
        self._clock = clock or SystemClock()
        self._grant: Grant | None = None

    @classmethod
    def from_grant(cls, grant: str, *, clock: Clock | None = None) -> BlobStore:
        """The store as far as a grant opens it: read-only for a read grant, own blobs only for a write grant.

        Raises:
            DomainError: GRANT_DENIED, it is malformed or expired.
        """
        decoded = Grant.decode(grant)
        store = cls(decoded.root_url, clock=clock)
        decoded.check(store._clock.now())
        store._grant = decoded
        return store

    # Writing.

    async def put(self, source: Source) -> Blob:
        """Stores bytes, the content of a file, or a stream. Putting the same content again costs no space.

        Args:
            source: `bytes`, a `Path`, an iterable or an async iterator of `bytes`.
        """
        if not isinstance(source, AsyncIterator):
            return await asyncio.to_thread(self.put_sync, source)
        writer = await asyncio.to_thread(self.writer)
        try:
            async for chunk in source:
                await asyncio.to_thread(writer.write, chunk)
            return await asyncio.to_thread(writer.finish)
        finally:
            await asyncio.to_thread(writer.close)

    def put_sync(self, source: bytes | Path | Iterable[bytes]) -> Blob:
        """Blocking twin of `put`."""
        with self.writer() as writer:
            if isinstance(source, bytes | bytearray | memoryview):
                writer.write(bytes(source))
            elif isinstance(source, Path):
                with source.open("rb") as file:
                    while chunk := file.read(CHUNK):
                        writer.write(chunk)
            else:
                for chunk in source:
                    writer.write(chunk)
            return writer.finish()

    def writer(self) -> BlobWriter:
        """A blob to be written piece by piece: `with store.writer() as w: w.write(...); blob = w.finish()`."""
        self._check_grant()
        if self._grant is not None and not self._grant.label:
            raise DomainError("GRANT_DENIED", "this grant is for reading only")
        return BlobWriter(self)

    async def commit(self, manifest: Json) -> str:
        """Stores a manifest and gives its digest. Every blob that its list `blobs` names must be in the store.

        Raises:
            DomainError: NOT_FOUND, a named blob is missing; TOO_LARGE.
        """
        return await asyncio.to_thread(self.commit_sync, manifest)

    def commit_sync(self, manifest: Json) -> str:
        """Blocking twin of `commit`."""
        for digest in set(manifest_digests(manifest)):
            self._locate(digest)
        content = canonical(manifest)
        if len(content) > _MANIFEST_LIMIT:
            message = f"a manifest of {len(content):,} bytes names too many blobs; {_MANIFEST_LIMIT:,} bytes at most"
            raise DomainError("TOO_LARGE", message, limit=str(_MANIFEST_LIMIT))
        return self.put_sync(content).sha256

    # Reading.

    async def get(self, sha256: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes [offset, offset + length) of a blob in chunks of at most 1 MiB; past its end there are none."""
        chunks = self.get_sync(sha256, offset, length)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield chunk

    def get_sync(self, sha256: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Blocking twin of `get`. A blob read as a whole is checked against its digest."""
        file = self._locate(sha256)
        whole = offset == 0 and (length is None or length >= file.size)
        hasher = hashlib.sha256()
        for chunk in _together(self._read(file, offset, file.size if length is None else length)):
            if whole:
                hasher.update(chunk)
            yield chunk
        if whole and hasher.hexdigest() != sha256:
            raise DomainError("INTERNAL", f"blob {sha256} is damaged")

    async def read(self, sha256: str, offset: int = 0, length: int | None = None) -> bytes:
        """All of `get` in one piece, for small blobs."""
        return await asyncio.to_thread(self.read_sync, sha256, offset, length)

    def read_sync(self, sha256: str, offset: int = 0, length: int | None = None) -> bytes:
        """Blocking twin of `read`."""
        return b"".join(self.get_sync(sha256, offset, length))

    def open(self, sha256: str) -> BinaryIO:
        """A seekable, buffered, blocking file for reading."""
        return io.BufferedReader(_Reader(self, self._locate(sha256)), CHUNK)

    async def export(self, sha256: str, path: Path) -> None:
        """Copies a blob to a local file, checked against its digest; the file appears complete or not at all."""
        await asyncio.to_thread(self.export_sync, sha256, path)

    def export_sync(self, sha256: str, path: Path) -> None:
        """Blocking twin of `export`."""
        # Another file of the folder may have any name, and the name may be as long as one can be.
        part = path.with_name(f".{uuid.uuid4().hex}.part")
        try:
            with storage_errors(path.name), part.open("wb") as file:
                for chunk in self.get_sync(sha256):
                    file.write(chunk)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    async def stat(self, sha256: str) -> Blob:
        """Size of a blob.

        Raises:
            DomainError: NOT_FOUND.
        """
        return await asyncio.to_thread(self.stat_sync, sha256)

    def stat_sync(self, sha256: str) -> Blob:
        """Blocking twin of `stat`."""
        return Blob(sha256, self._locate(sha256).size)

    async def load_manifest(self, digest: str) -> Json:
        """The manifest that `commit` stored.

        Raises:
            DomainError: NOT_FOUND; CONTENT_INVALID when the blob is not a manifest.
        """
        return await asyncio.to_thread(self.load_manifest_sync, digest)

    def load_manifest_sync(self, digest: str) -> Json:
        """Blocking twin of `load_manifest`."""
        try:
            if self._locate(digest).size <= _MANIFEST_LIMIT:
                document = orjson.loads(self.read_sync(digest))
                if isinstance(document, dict):
                    return document
        except orjson.JSONDecodeError:
            pass
        raise DomainError("CONTENT_INVALID", f"blob {digest} is not a manifest", detail="not a manifest")

    # Sharing and forgetting: for the owner only.

    async def grant(self, manifest_digest: str, holder: str, ttl: float) -> str:
        """Lets a holder read one manifest and the blobs that it names.

        Args:
            holder: Name of the task or worker, for logs.
            ttl: Life in seconds.
        """
        return await asyncio.to_thread(self.grant_sync, manifest_digest, holder, ttl)

    def grant_sync(self, manifest_digest: str, holder: str, ttl: float) -> str:
        """Blocking twin of `grant`."""
        self._owner_only()
        files: dict[str, GrantedFile] = {}
        for digest in {manifest_digest, *manifest_digests(self.load_manifest_sync(manifest_digest))}:
            file = self._locate(digest)
            files[digest] = GrantedFile(file.path, file.key)
        return Grant(self._folder.root_url, holder, expiry(self._clock.now(), ttl), files).encode()

    async def grant_write(self, prefix: str, ttl: float) -> str:
        """Lets a holder write blobs, and read back what was ever written under the same prefix.

        Args:
            prefix: Whose outputs these are, for example the uid of a task.
            ttl: Life in seconds.
        """
        return self.grant_write_sync(prefix, ttl)

    def grant_write_sync(self, prefix: str, ttl: float) -> str:
        """Blocking twin of `grant_write`."""
        self._owner_only()
        label = label_of(prefix)
        expires = expiry(self._clock.now(), ttl)
        if self._keyring is None:
            return Grant(self._folder.root_url, prefix, expires, label=label).encode()
        key_id = self._keyring.primary
        key = frames.label_key(self._keyring, key_id, label)
        return Grant(self._folder.root_url, prefix, expires, label=label, key_id=key_id, key=key).encode()

    async def collect(
        self, manifests: Iterable[str], blobs: Iterable[str], grace: float, given_up: Iterable[GivenUp] = ()
    ) -> int:
        """Deletes what nobody names any more.

        Args:
            manifests: Every manifest that lives; their blobs live too.
            blobs: Every other blob that lives.
            grace: Seconds since it was last put during which a blob is kept although nobody names it yet.
            given_up: Manifests without grace; what lives of them all the same stays.

        Returns:
            Number of files deleted.
        """
        return await asyncio.to_thread(self.collect_sync, manifests, blobs, grace, given_up)

    def collect_sync(
        self, manifests: Iterable[str], blobs: Iterable[str], grace: float, given_up: Iterable[GivenUp] = ()
    ) -> int:
        """Blocking twin of `collect`."""
        self._owner_only()
        # The bound is taken before the marking, so that whatever is put from now on stays.
        bound = expiry(self._clock.now(), -grace)
        live = set(blobs) | live_blobs(manifests, self.load_manifest_sync)
        given_up_at = without_grace(given_up, self.load_manifest_sync)
        deleted = 0
        with storage_errors("garbage"):
            for path in files_beside(live, self._folder):
                modified = self._folder.modified(path)
                if modified is not None and modified < max(bound, given_up_at.get(path.rpartition(".")[0], bound)):
                    self._folder.remove(path)
                    deleted += 1
        return deleted

    # How a blob is found.

    def _locate(self, sha256: str) -> _File:
        if not is_digest(sha256):
            raise DomainError("NOT_FOUND", "not the SHA-256 of a blob", name=sha256[:80])
        self._check_grant()
        with storage_errors(sha256):
            try:
                return self._find(sha256)
            except SecretError as error:
                raise DomainError("STORAGE_UNAVAILABLE", f"blob {sha256} cannot be decrypted: {error}") from error

    def _find(self, sha256: str) -> _File:
        grant = self._grant
        if grant is not None and not grant.label:
            granted = grant.files.get(sha256)
            if granted is None:
                raise DomainError("GRANT_DENIED", "the grant does not cover this blob", digest=sha256)
            return self._describe(granted.path, granted.key)
        for path in self._candidates(sha256):
            if self._folder.size(path) is not None:
                return self._describe(path, None)
        if grant is not None:
            raise DomainError("GRANT_DENIED", "the grant does not cover this blob", digest=sha256)
        raise FileNotFoundError(sha256)

    def _candidates(self, sha256: str) -> Iterator[str]:
        """The service's own file first; a look into the folder only when there is none."""
        shard = f"blobs/{sha256[:2]}"
        own = _OWN if self._grant is None else self._grant.label
        yield f"{shard}/{sha256}.{own}.enc"
        yield f"{shard}/{sha256}.{own}.raw"
        if self._grant is None:
            yield from (f"{shard}/{name}" for name in sorted(self._folder.names(shard)) if name.startswith(sha256))

    def _describe(self, path: str, key: bytes | None) -> _File:
        size = self._folder.size(path)
        if size is None:
            raise FileNotFoundError(path)
        if path.endswith(".raw"):
            return _File(path, size)
        label = path.split(".")[-2]
        with self._folder.open(path) as file:
            key_id, wrapped, header = frames.read_header(file)
        if key is None:
            key = frames.unwrap(self._wrapping_key(key_id, label), wrapped, label)
        return _File(path, frames.plain_size(size, header), key, header)

    def _wrapping_key(self, key_id: str, label: str) -> bytes:
        if self._grant is not None and self._grant.key is not None and self._grant.key_id == key_id:
            return self._grant.key
        if self._keyring is None:
            raise SecretError("the store has no key")
        return frames.label_key(self._keyring, key_id, label)

    def _read(self, file: _File, offset: int, length: int) -> Iterator[bytes]:
        end = min(file.size, offset + length)
        with storage_errors(file.path), self._folder.open(file.path) as opened:
            if file.key is not None:
                try:
                    yield from frames.read_frames(
                        opened, file.key, file.header, file.size, offset, max(0, end - offset)
                    )
                except SecretError as error:
                    raise DomainError("INTERNAL", str(error)) from error
                return
            opened.seek(offset)
            while offset < end and (chunk := opened.read(min(CHUNK, end - offset))):
                offset += len(chunk)
                yield chunk

    def _check_grant(self) -> None:
        if self._grant is not None:
            self._grant.check(self._clock.now())

    def _owner_only(self) -> None:
        if self._grant is not None:
            raise DomainError("GRANT_DENIED", "only the owner of a store does this")


class BlobWriter:
    """A blob being written. `finish` names it; leaving it without `finish` forgets it.

    It is a file to whatever writes into one, front to back.
    """

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._hasher = hashlib.sha256()
        self._size = 0
        self._stack = ExitStack()
        grant, keyring = store._grant, store._keyring
        self._label = _OWN if grant is None else grant.label
        encrypted = keyring is not None or (grant is not None and grant.key is not None)
        self._suffix = "enc" if encrypted else "raw"
        with storage_errors("blob"):
            self._file, self._path = self._stack.enter_context(store._folder.staged())
            self._frames: frames.FrameWriter | None = None
            if encrypted:
                key_id = keyring.primary if keyring is not None else grant.key_id if grant is not None else ""
                key = frames.write_header(self._file, key_id, store._wrapping_key(key_id, self._label), self._label)
                self._frames = frames.FrameWriter(self._file, key)

    def write(self, chunk: bytes | memoryview) -> int:
        """Appends the bytes; gives how many they are."""
        with storage_errors("blob"):
            (self._frames or self._file).write(chunk)
        self._hasher.update(chunk)
        self._size += len(chunk)
        return len(chunk)

    def flush(self) -> None:
        """Nothing: what is written counts from `finish` on."""

    def finish(self) -> Blob:
        """Makes the blob durable and names it."""
        store, digest = self._store, self._hasher.hexdigest()
        path = f"blobs/{digest[:2]}/{digest}.{self._label}.{self._suffix}"
        with storage_errors("blob"):
            # Touched first: a garbage collector that looked before sees the new time when it looks again.
            store._folder.touch(path, store._clock.now())
            if store._folder.size(path) is None:
                if self._frames is not None:
                    self._frames.close()
                store._folder.publish(self._file, self._path, path)
        return Blob(digest, self._size)

    def close(self) -> None:
        with storage_errors("blob"):
            self._stack.close()

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Reader(io.RawIOBase):
    """A blob as a raw seekable file."""

    def __init__(self, store: BlobStore, file: _File) -> None:
        super().__init__()
        self._store = store
        self._blob = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._blob.size}[whence]
        if start + offset < 0:
            raise ValueError("negative seek position")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = b"".join(self._store._read(self._blob, self._at, len(buffer)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _together(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Frames of 64 KiB joined to chunks of 1 MiB: a chunk costs a thread switch on its way to a coroutine."""
    pieces: list[bytes] = []
    size = 0
    for chunk in chunks:
        if size + len(chunk) > CHUNK and pieces:
            yield b"".join(pieces)
            pieces, size = list[bytes](), 0
        pieces.append(chunk)
        size += len(chunk)
    if pieces:
        yield b"".join(pieces)
