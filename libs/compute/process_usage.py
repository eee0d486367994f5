"""What a process uses: memory, threads, processor time, and disk also where a file has no name any more."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 512
_GONE = " (deleted)"
# Of its own, shared with none of its files, swapped out, and what the kernel needs to find them again.
_MEMORY = ("RssAnon", "RssShmem", "VmSwap", "VmPTE")
# A thread may end between two looks at it.
_LOOKS = 5


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process uses.

    Attributes:
        memory: bytes of its own and shared with none of its files, and of its page tables.
        cpu_seconds: so far.
    """

    memory: int
    threads: int
    cpu_seconds: float


def usage_of(pid: int) -> Usage | None:
    """Of a process; None: it has ended."""
    try:
        text = (_living(pid) / "status").read_text()
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    status = dict(line.split(":", 1) for line in text.splitlines())
    # A process that has ended and is not waited for has no memory.
    kilobytes = [int(status[name].split()[0]) for name in _MEMORY if name in status]
    # utime and stime, proc_pid_stat(5); the state is the first that is left.
    seconds = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return Usage(1024 * sum(kilobytes), int(status["Threads"]), seconds)


def entries_below(folders: Sequence[Path]) -> Iterator[os.DirEntry[str]]:
    """Everything in folders, each folder before what is in it. What goes away meanwhile is left out.

    Raises:
        OSError: A folder cannot be read.
    """
    waiting = [str(folder) for folder in folders]
    while waiting:
        # It may have become a file.
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def bytes_of(entry: os.DirEntry[str]) -> int:
    """Bytes of a file, holes too, which become bytes where it is copied; 0: it is gone."""
    with suppress(FileNotFoundError, NotADirectoryError):
        found = entry.stat(follow_symlinks=False)
        return max(found.st_size, found.st_blocks * _BLOCK)
    return 0


def nameless_bytes(folders: Sequence[Path], pid: int) -> int:
    """Bytes on the disk of the files in folders that a process removed and still has open or in its memory."""
    places, process = tuple(f"{folder}/" for folder in folders), _living(pid)
    found: dict[int, int] = {}
    with suppress(OSError):
        for name in os.listdir(process / "fd"):
            with suppress(OSError):
                link = process / "fd" / name
                if os.readlink(link).startswith(places) and os.readlink(link).endswith(_GONE):
                    held = os.stat(link)
                    found[held.st_ino] = held.st_blocks * _BLOCK
    with suppress(OSError):
        for line in (process / "maps").read_text().splitlines():
            parts = line.split(maxsplit=5)
            if len(parts) == 6 and parts[5].startswith(places) and parts[5].endswith(_GONE):
                found.setdefault(int(parts[4]), _mapped_bytes(process / "map_files" / parts[0]))
    return sum(found.values())


def _mapped_bytes(mapping: Path) -> int:
    """Of a file that is in memory: all of it where we may ask for it (map_files of proc(5)), or what is mapped."""
    with suppress(OSError):
        return mapping.stat().st_blocks * _BLOCK
    begin, _, end = mapping.name.partition("-")
    return int(end, 16) - int(begin, 16)


def _living(pid: int) -> Path:
    """Where /proc tells of a process: as a thread that has not ended. The first one may have, and what the others still
    have is not told of it any more."""
    for _ in range(_LOOKS):
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with suppress(OSError):
                    if "RssAnon" in Path(f"/proc/{thread}/status").read_text():
                        return Path(f"/proc/{thread}")
    return Path(f"/proc/{pid}")
