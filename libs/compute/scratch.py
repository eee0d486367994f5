"""Folders for files that do not outlive their process, not even where it is killed.

Its maker holds a lock on such a folder (flock(2)), which the kernel takes away with the process. Whoever makes the next
one removes those that nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@contextmanager
def scratch_folder(prefix: str) -> Generator[Path]:
    """A new folder in that for temporary files; it goes at the end, with all that is in it.

    Args:
        prefix: of its name. Folders of this prefix whose makers were killed go first.
    """
    _sweep(prefix)
    folder, lock = _locked(prefix)
    try:
        yield folder
    finally:
        try:
            remove_tree(folder)
        finally:
            os.close(lock)


def remove_tree(folder: Path) -> None:
    """Removes a folder, however deep it is: what lies in its folders is moved up, so that no path becomes long and no
    call nests. Nobody may write in it meanwhile."""
    folder.chmod(0o700)
    top = os.open(folder, _FOLDER)
    try:
        while entries := _entries(top):
            for entry in entries:
                if not _is_folder(entry):
                    os.unlink(entry.name, dir_fd=top)
                    continue
                _lift(top, entry.name)
                os.rmdir(entry.name, dir_fd=top)
    finally:
        os.close(top)
    folder.rmdir()


def _lift(top: int, name: str) -> None:
    """Empties a folder: its files go, its folders come up."""
    # It may have been made without the right to read it.
    os.chmod(name, 0o700, dir_fd=top)
    folder = os.open(name, _FOLDER, dir_fd=top)
    try:
        for entry in _entries(folder):
            if _is_folder(entry):
                # Who moves a folder writes in it.
                os.chmod(entry.name, 0o700, dir_fd=folder)
                os.rename(entry.name, uuid.uuid4().hex, src_dir_fd=folder, dst_dir_fd=top)
            else:
                os.unlink(entry.name, dir_fd=folder)
    finally:
        os.close(folder)


def _entries(folder: int) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _locked(prefix: str) -> tuple[Path, int]:
    """A new folder and the lock on it. Between both somebody may have swept it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        with suppress(FileNotFoundError):
            lock = os.open(folder, _FOLDER)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _sweep(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        # Another process holds it or has just removed it, or it is no folder, or somebody else's.
        with suppress(OSError):
            lock = os.open(folder, _FOLDER)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.geteuid():
                    remove_tree(folder)
            finally:
                os.close(lock)
