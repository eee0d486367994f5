"""The files below a blob store, on any file system of fsspec; on a local one, durable before they have a name."""

from __future__ import annotations

import errno
import os
import tempfile
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from libs.common.domain import DomainError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def storage_errors(what: str) -> Generator[None]:
    """Turns errors of the file system into reasons of the catalogue.

    Raises:
        DomainError: NOT_FOUND, STORAGE_FULL or STORAGE_UNAVAILABLE.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DomainError("NOT_FOUND", f"{what} is not in the store", name=what) from error
    except OSError as error:
        if error.errno in _FULL:
            raise DomainError("STORAGE_FULL", "the disk of the blob store is full", store="blobs") from error
        raise DomainError("STORAGE_UNAVAILABLE", "the blob store does not answer") from error


class Folder:
    """Files under one root. Paths are relative to it.

    Args:
        root_url: `file:///...`, `s3://bucket/prefix`, `memory://...`.
    """

    def __init__(self, root_url: str) -> None:
        self.root_url = root_url
        self._fs, self._root = fsspec.core.url_to_fs(root_url)
        self._local = isinstance(self._fs, LocalFileSystem)
        if self._local:
            with storage_errors("root folder"):
                self._path("staging").mkdir(parents=True, exist_ok=True)

    @contextmanager
    def staged(self) -> Generator[tuple[BinaryIO, Path]]:
        """A new nameless file for `publish`; it is removed on the way out unless it was published."""
        folder = self._path("staging") if self._local else Path(tempfile.gettempdir())
        path = folder / f"argosy-{uuid.uuid4().hex}"
        try:
            with path.open("wb") as file:
                yield file, path
        finally:
            path.unlink(missing_ok=True)

    def publish(self, file: BinaryIO, staged: Path, path: str) -> None:
        """Gives a staged file its name, all or nothing: fsync and rename, or one upload (multipart if large)."""
        file.flush()
        if not self._local:
            self._fs.makedirs(self._join(path).rsplit("/", 1)[0], exist_ok=True)
            self._fs.put_file(str(staged), self._join(path))
            return
        os.fsync(file.fileno())
        target = self._path(path)
        if not target.parent.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _sync_folder(target.parent.parent)
        staged.replace(target)
        _sync_folder(target.parent)

    def open(self, path: str) -> BinaryIO:
        if self._local:
            return self._path(path).open("rb")
        return cast(BinaryIO, self._fs.open(self._join(path), "rb"))

    def size(self, path: str) -> int | None:
        """Bytes of the file; None when there is none."""
        try:
            return self._path(path).stat().st_size if self._local else int(self._fs.size(self._join(path)))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """Names in a folder; none when it does not exist."""
        try:
            if self._local:
                return os.listdir(self._path(folder))
            return [entry.rsplit("/", 1)[-1] for entry in self._fs.ls(self._join(folder), detail=False, refresh=True)]
        except FileNotFoundError:
            return []

    def modified(self, path: str) -> datetime | None:
        """When the file was written or last put again; None when it is gone."""
        try:
            if self._local:
                return datetime.fromtimestamp(self._path(path).stat().st_mtime, UTC)
            return self._fs.modified(self._join(path)).astimezone(UTC)
        except FileNotFoundError:
            return None

    def touch(self, path: str, now: datetime) -> None:
        """Restarts the grace time of a file that was put again. Object stores that cannot do it keep the old time."""
        if self._local:
            with suppress(FileNotFoundError):
                os.utime(self._path(path), (now.timestamp(), now.timestamp()))

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._join(path))

    def _join(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _path(self, path: str) -> Path:
        return Path(self._root) / path


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable: the folder is data of its own."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
