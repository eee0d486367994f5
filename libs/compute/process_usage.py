"""What a process uses: memory, threads, processor time, and disk also where a file has no name any more."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 512
_GONE = " (deleted)"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process uses.

    Attributes:
        memory: bytes of its own and shared with none of its files.
        cpu_seconds: so far.
    """

    memory: int
    threads: int
    cpu_seconds: float


def usage_of(pid: int) -> Usage | None:
    """Of a process; None: it has ended."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # A process that has ended and is not waited for has no memory.
    kilobytes = [int(status[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmSwap") if name in status]
    # utime and stime, proc_pid_stat(5); the state is the first that is left.
    seconds = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return Usage(1024 * sum(kilobytes), int(status["Threads"]), seconds)


def disk_bytes(folders: Sequence[Path], pid: int) -> tuple[int, int]:
    """Bytes on the disk of all files in folders, with those that a process still holds without a name; and how many
    files there are."""
    used = count = 0
    for entry in _entries(folders):
        with suppress(FileNotFoundError):
            used += entry.stat(follow_symlinks=False).st_blocks * _BLOCK
        count += 1
    return used + sum(_nameless(folders, pid).values()), count


def _entries(folders: Sequence[Path]) -> Iterator[os.DirEntry[str]]:
    waiting = [str(folder) for folder in folders]
    while waiting:
        with suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def _nameless(folders: Sequence[Path], pid: int) -> dict[int, int]:
    """Files that a process removed and has open or in its memory: inode to bytes."""
    places = tuple(f"{folder}/" for folder in folders)
    found: dict[int, int] = {}
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                link = f"/proc/{pid}/fd/{name}"
                if os.readlink(link).startswith(places) and os.readlink(link).endswith(_GONE):
                    held = os.stat(link)
                    found[held.st_ino] = held.st_blocks * _BLOCK
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            parts = line.split(maxsplit=5)
            if len(parts) == 6 and parts[5].startswith(places) and parts[5].endswith(_GONE):
                begin, _, end = parts[0].partition("-")
                found.setdefault(int(parts[4]), int(end, 16) - int(begin, 16))
    return found
