"""Decoding in a limited child process: what a file of a stranger does to its decoder, it does to that child."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from services.dataset.engines.media_child import CPU_SECONDS

# Of one file, from the request to the answer; more than the processor time, because other processes want the processor.
WALL_SECONDS = 180.0
# An answer is a few numbers, and those of boxes.
_MOST_ANSWER = 8 * 1024 * 1024
_PIPE_BYTES = 64 * 1024
# Columns that a child may give a row, and the longest text among them.
FACTS = ("width", "height", "duration", "sample_rate", "channels", "frames", "fps", "codec")
_LONGEST_TEXT = 32
_NO_ANSWER = "the decoder gave no answer that can be understood"

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Augmented:
    """What became of a file.

    Attributes:
        facts: those of `FACTS` that apply; empty when no step changed it.
        boxes: each as it lies now; None for one that is not on the image any more.
        applied: operators that changed it; without any, nothing was written.
    """

    facts: Facts
    boxes: Sequence[Sequence[float] | None]
    applied: list[str]


class MediaError(Exception):
    """A file that cannot be used; the message says why, for people. Others can be."""


class MediaChild:
    """The child of one worker: started when it is first needed, replaced when a file killed it.

    Example:
        with MediaChild() as child:
            facts = child.probe(Path("cat.png"), "image")
    """

    def __init__(self, wall_seconds: float = WALL_SECONDS) -> None:
        self._wall_seconds = wall_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MediaChild:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    @property
    def pid(self) -> int | None:
        """Of the child that lives now."""
        return self._process.pid if self._process is not None else None

    def probe(self, path: Path, media_type: str) -> Facts:
        """Decodes a file and says what is in it.

        Args:
            path: Of a local file.
            media_type: `image`, `audio` or `video`.

        Returns:
            Those of `FACTS` that apply.

        Raises:
            MediaError: The file is broken, or decoding it went beyond a limit.
        """
        return _checked(self._ask({"path": str(path), "media_type": media_type}).get("facts"))

    def augment(
        self, path: Path, out: Path, media_type: str, steps: Sequence[Facts], boxes: Sequence[Sequence[float]]
    ) -> Augmented:
        """Changes a file at random and writes the result to `out`; see `media_augmentation.augment_file`.

        Raises:
            MediaError: As `probe`, or the file cannot be changed.
        """
        request = {"path": str(path), "out": str(out), "media_type": media_type, "steps": steps, "boxes": boxes}
        answer = self._ask(request)
        moved, applied = answer.get("boxes"), answer.get("applied")
        if not isinstance(moved, list) or len(moved) != len(boxes) or not isinstance(applied, list):
            raise MediaError(_NO_ANSWER)
        known = {step["operator"] for step in steps}
        return Augmented(_checked(answer.get("facts")), moved, [name for name in applied if name in known])

    def pixels(self, path: Path, out: Path) -> np.ndarray:
        """The pixels of an image as stored (a rotation in the metadata is not applied), (height, width, 3) uint8, RGB.

        Args:
            path: Of a local file.
            out: Where the child may write.

        Raises:
            MediaError: As `probe`.
        """
        facts = _checked(self._ask({"path": str(path), "out": str(out), "media_type": "image"}).get("facts"))
        width, height = facts.get("width"), facts.get("height")
        values = np.fromfile(out, np.uint8)
        if not isinstance(width, int) or not isinstance(height, int) or values.size != height * width * 3:
            raise MediaError(_NO_ANSWER)
        return values.reshape(height, width, 3)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._process = self._process or _start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            answer = json.loads(self._read_line(process))
        except (OSError, ValueError) as error:
            raise MediaError(self._end()) from error
        if "error" in answer:
            raise MediaError(str(answer["error"])[:500])
        return answer

    def _read_line(self, process: subprocess.Popen[bytes]) -> bytes:
        """The answer. Raises ValueError when none comes: the child is not trusted to send what it should."""
        assert process.stdout is not None
        descriptor, line = process.stdout.fileno(), b""
        end = time.monotonic() + self._wall_seconds
        while not line.endswith(b"\n"):
            if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                raise ValueError("too late")
            piece = os.read(descriptor, _PIPE_BYTES)
            line += piece
            if not piece or len(line) > _MOST_ANSWER:
                raise ValueError("no answer")
        return line

    def _end(self) -> str:
        """Ends the child; says what became of it."""
        process, self._process = self._process, None
        if process is None:
            return ""
        with process:
            late = process.poll() is None and not _ends(process)
            process.kill()
        code = process.returncode
        if code == -signal.SIGXCPU:
            return f"decoding it needs more than {CPU_SECONDS} s of processor time"
        if late:
            return f"decoding it takes longer than {self._wall_seconds:g} s"
        return f"the decoder crashed ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"


@lru_cache(maxsize=1)
def worker_child() -> MediaChild:
    """The child of this process, for functions that are called again and again in one worker, one at a time. It ends
    with the worker, whose end closes its standard input."""
    return MediaChild()


def _ends(process: subprocess.Popen[bytes]) -> bool:
    """Whether a child ends by itself now that it gets no more requests."""
    assert process.stdin is not None
    try:
        process.stdin.close()
        process.wait(0.5)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return True


def _start() -> subprocess.Popen[bytes]:
    # Nothing of the parent's environment: it may hold secrets.
    environment = {
        "PATH": os.defpath,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OPENCV_LOG_LEVEL": "OFF",
        # A film that names others gets none.
        "OPENCV_FFMPEG_CAPTURE_OPTIONS": "protocol_whitelist;file",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "services.dataset.engines.media_child"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        close_fds=True,
    )


def _checked(facts: object) -> Facts:
    """The columns among what a child said."""
    if not isinstance(facts, dict):
        raise MediaError(_NO_ANSWER)
    found: Facts = {}
    for name in FACTS:
        value = facts.get(name)
        if isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _LONGEST_TEXT):
            found[name] = value
    return found
