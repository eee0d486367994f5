from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from libs.common.blobs import BlobStore, GivenUp, canonical
from libs.common.blobs.folder import storage_errors
from libs.common.blobs.frames import FRAME
from libs.common.clock import ManualClock
from libs.common.domain import DomainError
from libs.common.secrets import Keyring

START = datetime(2030, 1, 1, tzinfo=UTC)
LARGE = os.urandom(3 * FRAME + 17)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring.create_file(tmp_path / "keys")


@pytest.fixture(params=["plain", "encrypted"])
def store(request: pytest.FixtureRequest, tmp_path: Path, keyring: Keyring, clock: ManualClock) -> BlobStore:
    return BlobStore(f"file://{tmp_path}/blobs", keyring if request.param == "encrypted" else None, clock=clock)


def files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


def reason(error: pytest.ExceptionInfo[DomainError]) -> str:
    return error.value.reason


@pytest.mark.parametrize("size", [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME])
async def test_put_and_get(store: BlobStore, size: int) -> None:
    data = LARGE[:size]
    blob = await store.put(data)
    assert (blob.sha256, blob.size) == (hashlib.sha256(data).hexdigest(), size)
    assert await store.read(blob.sha256) == data
    assert await store.stat(blob.sha256) == blob


async def test_every_kind_of_source_gives_the_same_blob(store: BlobStore, tmp_path: Path) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(LARGE), 1000):
            yield LARGE[start : start + 1000]

    path = tmp_path / "source"
    path.write_bytes(LARGE)
    blobs = [await store.put(LARGE), await store.put(path), await store.put(iter([LARGE])), await store.put(stream())]
    assert len(set(blobs)) == 1
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 10), (5, None), (FRAME - 3, 7), (2 * FRAME, FRAME), (len(LARGE) - 1, 50), (10**9, 1), (3, 0)],
)
def test_ranges(store: BlobStore, offset: int, length: int | None) -> None:
    digest = store.put_sync(LARGE).sha256
    end = None if length is None else offset + length
    assert store.read_sync(digest, offset, length) == LARGE[offset:end]


def test_open_seeks(store: BlobStore) -> None:
    with store.open(store.put_sync(LARGE).sha256) as file:
        file.seek(-5, os.SEEK_END)
        assert file.read() == LARGE[-5:]
        file.seek(FRAME - 2)
        assert file.read(4) == LARGE[FRAME - 2 : FRAME + 2]


def test_export_appears_whole(store: BlobStore, tmp_path: Path) -> None:
    store.export_sync(store.put_sync(LARGE).sha256, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == LARGE


def test_an_aborted_write_leaves_nothing(store: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), store.writer() as writer:
        writer.write(LARGE)
        raise RuntimeError
    assert files(tmp_path) == []


async def test_a_cancelled_stream_leaves_nothing(store: BlobStore, tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield LARGE
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.put(endless()), 0.2)
    assert files(tmp_path) == []


@pytest.mark.parametrize("digest", ["", "0" * 64, "../../etc/passwd", "A" * 64])
def test_what_is_not_there_is_not_found(store: BlobStore, digest: str) -> None:
    with pytest.raises(DomainError) as error:
        store.stat_sync(digest)
    assert reason(error) == "NOT_FOUND"


def test_manifests_are_canonical_and_complete(store: BlobStore) -> None:
    digest = store.put_sync(b"part").sha256
    first = store.commit_sync({"kind": "dataset", "blobs": [{"sha256": digest, "size": 4}]})
    assert first == store.commit_sync({"blobs": [{"size": 4, "sha256": digest}], "kind": "dataset"})
    assert store.load_manifest_sync(first)["kind"] == "dataset"
    with pytest.raises(DomainError) as error:
        store.commit_sync({"blobs": [{"sha256": "1" * 64}]})
    assert reason(error) == "NOT_FOUND"
    with pytest.raises(DomainError) as error:
        store.load_manifest_sync(digest)
    assert reason(error) == "CONTENT_INVALID"
    assert canonical({"b": 1, "a": [1.5]}) == b'{"a":[1.5],"b":1}'


def test_encrypted_files_do_not_show_their_content(tmp_path: Path, keyring: Keyring) -> None:
    BlobStore(f"file://{tmp_path}/blobs", keyring).put_sync(b"canary " * 1000)
    [path] = files(tmp_path)
    assert b"canary" not in path.read_bytes()


def test_another_key_does_not_open(tmp_path: Path, keyring: Keyring) -> None:
    digest = BlobStore(f"file://{tmp_path}/blobs", keyring).put_sync(LARGE).sha256
    for other in (None, Keyring({keyring.primary: os.urandom(32)}, keyring.primary)):
        with pytest.raises(DomainError) as error:
            BlobStore(f"file://{tmp_path}/blobs", other).read_sync(digest)
        assert reason(error) == "STORAGE_UNAVAILABLE"


def test_damage_is_noticed(store: BlobStore, tmp_path: Path) -> None:
    digest = store.put_sync(LARGE).sha256
    [path] = files(tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(DomainError) as error:
        store.read_sync(digest)
    assert reason(error) == "INTERNAL"


def test_frames_cannot_be_cut_or_moved(tmp_path: Path, keyring: Keyring) -> None:
    store = BlobStore(f"file://{tmp_path}/blobs", keyring)
    digest = store.put_sync(LARGE).sha256
    [path] = files(tmp_path)
    sealed = FRAME + 16
    content = path.read_bytes()
    header = len(content) - len(LARGE) - 4 * 16
    first, second = content[header : header + sealed], content[header + sealed : header + 2 * sealed]
    moved = content[:header] + second + first + content[header + 2 * sealed :]
    for altered in (moved, content[: header + 2 * sealed]):
        path.write_bytes(altered)
        with pytest.raises(DomainError):
            store.read_sync(digest, 0, 2 * FRAME - 1)


def test_a_read_grant_opens_its_manifest_and_nothing_else(store: BlobStore, clock: ManualClock) -> None:
    inside, outside = store.put_sync(b"inside").sha256, store.put_sync(b"outside").sha256
    manifest = store.commit_sync({"blobs": [{"sha256": inside}]})
    granted = BlobStore.from_grant(store.grant_sync(manifest, "task", 60), clock=clock)
    assert granted.load_manifest_sync(manifest)["blobs"][0]["sha256"] == inside
    assert granted.read_sync(inside) == b"inside"
    for attempt in (
        lambda: granted.read_sync(outside),
        lambda: granted.put_sync(b"new"),
        lambda: granted.grant_sync(manifest, "friend", 60),
        lambda: granted.collect_sync([], [], 0),
    ):
        with pytest.raises(DomainError) as error:
            attempt()
        assert reason(error) == "GRANT_DENIED"


async def test_a_grant_expires_also_in_use(store: BlobStore, clock: ManualClock) -> None:
    digest = store.put_sync(b"inside").sha256
    text = await store.grant(store.commit_sync({"blobs": [{"sha256": digest}]}), "task", 60)
    granted = BlobStore.from_grant(text, clock=clock)
    clock.advance(61)
    with pytest.raises(DomainError) as error:
        granted.read_sync(digest)
    assert reason(error) == "GRANT_DENIED"
    with pytest.raises(DomainError):
        BlobStore.from_grant(text, clock=clock)


@pytest.mark.parametrize("text", ["", "e30=", "not base64 at all", "W10="])
def test_a_malformed_grant_is_refused(text: str) -> None:
    with pytest.raises(DomainError) as error:
        BlobStore.from_grant(text)
    assert reason(error) == "GRANT_DENIED"


async def test_a_write_grant_reads_back_its_prefix_only(store: BlobStore, clock: ManualClock) -> None:
    other = store.put_sync(b"the owner's").sha256
    first = BlobStore.from_grant(await store.grant_write("task-1", 60), clock=clock)
    digest = first.put_sync(LARGE).sha256
    manifest = first.commit_sync({"blobs": [{"sha256": digest}]})
    assert store.read_sync(digest) == LARGE, "the owner reads what a task wrote"
    assert store.load_manifest_sync(manifest)
    again = BlobStore.from_grant(await store.grant_write("task-1", 60), clock=clock)
    assert again.read_sync(digest) == LARGE, "the next attempt reads the checkpoint of the one before"
    stranger = BlobStore.from_grant(await store.grant_write("task-2", 60), clock=clock)
    for granted, wanted in ((stranger, digest), (first, other)):
        with pytest.raises(DomainError) as error:
            granted.read_sync(wanted)
        assert reason(error) == "GRANT_DENIED"


def test_a_grant_does_not_carry_the_keys_of_other_blobs(tmp_path: Path, keyring: Keyring) -> None:
    """Even a holder who asks for another file by its path has no key for it."""
    store = BlobStore(f"file://{tmp_path}/blobs", keyring)
    inside, outside = store.put_sync(b"inside").sha256, store.put_sync(b"outside").sha256
    granted = BlobStore.from_grant(store.grant_sync(store.commit_sync({"blobs": [{"sha256": inside}]}), "task", 60))
    grant = granted._grant
    assert grant is not None
    path = grant.files[inside].path.replace(inside[:2] + "/", outside[:2] + "/").replace(inside, outside)
    grant.files[outside] = type(grant.files[inside])(path, grant.files[inside].key)
    with pytest.raises(DomainError):
        granted.read_sync(outside)


async def test_garbage_goes_after_its_grace(store: BlobStore, clock: ManualClock, tmp_path: Path) -> None:
    kept, lone, dropped = (store.put_sync(name).sha256 for name in (b"kept", b"lone", b"dropped"))
    manifest = store.commit_sync({"blobs": [{"sha256": kept}]})
    for path in files(tmp_path):
        os.utime(path, (START.timestamp(), START.timestamp()))
    clock.advance(100)
    assert store.collect_sync([manifest], [lone], 200) == 0, "everything is young"
    store.put_sync(b"dropped")
    assert store.collect_sync([manifest], [lone], 50) == 0, "put again: its grace begins again"
    clock.advance(51)
    assert store.collect_sync([manifest], [lone], 50) == 1
    assert store.read_sync(kept) == b"kept"
    assert store.read_sync(lone) == b"lone"
    with pytest.raises(DomainError):
        store.stat_sync(dropped)


def test_what_its_writer_has_given_up_goes_without_grace(store: BlobStore, clock: ManualClock, tmp_path: Path) -> None:
    def writer(prefix: str) -> BlobStore:
        return BlobStore.from_grant(store.grant_write_sync(prefix, 600), clock=clock)

    def written(prefix: str, *contents: bytes) -> str:
        blobs = [writer(prefix).put_sync(content).entry(str(number)) for number, content in enumerate(contents)]
        return writer(prefix).commit_sync({"blobs": blobs})

    def read(prefix: str, manifest: str) -> list[bytes]:
        reader = writer(prefix)
        return [reader.read_sync(entry["sha256"]) for entry in reader.load_manifest_sync(manifest)["blobs"]]

    old = written("task", b"old weights", b"frozen", b"put again")
    new = written("task", b"new weights", b"frozen")
    twin = written("other task", b"old weights", b"frozen", b"put again")
    for path in files(tmp_path):
        os.utime(path, (START.timestamp(), START.timestamp()))
    clock.advance(10)
    given_up = [GivenUp(old, "task", clock.now()), GivenUp("0" * 64, "task", clock.now())]
    clock.advance(10)
    put_again = writer("task").put_sync(b"put again").sha256
    before = len(files(tmp_path))
    # Its manifest and its weights; not what the new one names, what was put since, and what another task wrote.
    assert store.collect_sync([new], [], 3600, given_up) == 2
    assert len(files(tmp_path)) == before - 2
    assert read("task", new) == [b"new weights", b"frozen"]
    assert writer("task").read_sync(put_again) == b"put again"
    assert read("other task", twin) == [b"old weights", b"frozen", b"put again"]
    assert store.collect_sync([new], [], 3600, given_up) == 0, "what is gone already is no error"


def test_garbage_collection_of_a_half_written_file(store: BlobStore, clock: ManualClock, tmp_path: Path) -> None:
    stray = tmp_path / "blobs" / "staging" / "argosy-left-by-a-kill"
    stray.write_bytes(b"half")
    long_ago = (START - timedelta(days=2)).timestamp()
    os.utime(stray, (long_ago, long_ago))
    assert store.collect_sync([], [], 86_400) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_has_its_own_reason(code: int) -> None:
    with pytest.raises(DomainError) as error, storage_errors("x"):
        raise OSError(code, "full")
    assert reason(error) == "STORAGE_FULL"


def test_a_full_disk_loses_nothing(tmp_path: Path, store: BlobStore) -> None:
    """A file size limit of this process stands for the disk: the kernel refuses the write."""
    import resource
    import signal

    kept = store.put_sync(b"before").sha256
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DomainError) as error:
            store.put_sync(LARGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert reason(error) == "STORAGE_FULL"
    assert store.read_sync(kept) == b"before"
    assert len(files(tmp_path)) == 1
    assert store.read_sync(store.put_sync(LARGE).sha256) == LARGE


def test_memory_file_system_stands_for_a_bucket() -> None:
    store = BlobStore("memory://bucket/prefix", Keyring({"k": os.urandom(32)}, "k"))
    digest = store.put_sync(LARGE).sha256
    assert store.read_sync(digest, FRAME - 1, 2) == LARGE[FRAME - 1 : FRAME + 1]
    assert store.collect_sync([], [], -10) == 1


def test_a_manifest_that_could_not_be_read_again_is_not_stored(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    monkeypatch.setattr("libs.common.blobs.store._MANIFEST_LIMIT", 200)
    blobs = [store.put_sync(bytes([n])).sha256 for n in range(3)]
    fits = store.commit_sync({"blobs": [{"sha256": blobs[0]}]})
    with pytest.raises(DomainError) as refused:
        store.commit_sync({"blobs": [{"sha256": digest} for digest in blobs]})
    assert reason(refused) == "TOO_LARGE"
    clock.advance(3 * 86400.0)
    store.collect_sync([fits], [], 3600.0)
    assert store.read_sync(blobs[0]) == b"\x00"
