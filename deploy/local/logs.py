"""Log files of the processes: capped, rotated under their feet, read together."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

# A process has at most three files of this size.
_LIMIT = 8 * 1024 * 1024
_KEPT = 2


def rotate(path: Path, limit: int = _LIMIT) -> bool:
    """Moves what a log holds to `<log>.1`, when it is larger than the limit. Tells whether it did.

    The file is copied and emptied instead of renamed, because its process writes to the open file (in append mode) and
    must not be disturbed. Lines written between the two steps are lost.
    """
    if path.stat().st_size <= limit:
        return False
    for number in range(_KEPT, 1, -1):
        older = path.with_name(f"{path.name}.{number - 1}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number}"))
    shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    os.truncate(path, 0)
    return True


def says(path: Path, words: str, offset: int) -> bool:
    """Whether a log holds these words behind an offset. One that was rotated since is too old to ask."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < offset:
                return True
            file.seek(offset)
            return words.encode() in file.read(1 << 20)
    except OSError:
        return False


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log; none if there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 400 * lines - 4096))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-lines:]


def follow(paths: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """Every new line of several logs, with the part it comes from, for ever.

    Args:
        paths: log by part. One that does not exist yet is picked up when it does.
    """
    offsets = {part: path.stat().st_size if path.exists() else 0 for part, path in paths.items()}
    rests = dict.fromkeys(paths, "")
    while True:
        for part, path in paths.items():
            size = path.stat().st_size if path.exists() else 0
            if size < offsets[part]:
                offsets[part], rests[part] = 0, ""
            if size > offsets[part]:
                with path.open("rb") as file:
                    file.seek(offsets[part])
                    data = file.read(size - offsets[part])
                offsets[part] += len(data)
                *whole, rests[part] = (rests[part] + data.decode(errors="replace")).split("\n")
                for line in whole:
                    yield part, line
        time.sleep(0.3)
