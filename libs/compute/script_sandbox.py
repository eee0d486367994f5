"""A process that runs a script of a user's over a folder and can reach nothing else.

The child (`script_child.py`) closes itself in before it sees the script: see there for how. This side starts it, reads
what it prints and says, watches its time, memory, threads and disk, and ends it when it breaks a limit. The child can
start no process, so ending it ends everything. Where it cannot close itself in, nothing runs.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from libs.compute.context import EngineError
from libs.compute.process_usage import Usage, bytes_of, entries_below, nameless_bytes, usage_of

CHILD = Path(__file__).with_name("script_child.py")
CODE, WRITABLE = "code", ("output", "checkpoint", "tmp")
# Where `libs` lies, and the module that every script finds.
_ROOT, _HELPER = CHILD.parents[2], CHILD.with_name("script_path")
# What the interpreter and the libraries for numbers read beside their own folders.
_SYSTEM = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime"),
    *("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu", "/sys/devices/system/node"),
    *("/dev/urandom", "/dev/zero"),
)
_DEVICES = ("/dev/null",)
_WATCH_SECONDS = 0.2
_STOP_SECONDS = 0.001
# So long, in times of what it took to hear it, it is not listened to.
_BUSY = 4
# A child starts in half a second; a machine that is out of memory takes longer.
_START_SECONDS = 60.0
_MOST_THREADS = 512
_MOST_FILES = 10_000
# Of a path below the folder of a run, in bytes. It bounds how deep folders lie, and leaves room in the 4,096 that Linux
# takes for the folders that a run or its checkpoint is in.
_LONGEST_PATH = 500
# What stays free on the disk, whatever a script may write and whoever else writes; half of what there is where it is
# less.
_LEAST_FREE = 1 << 30
# What the errors of the filter and of Landlock mean.
_REFUSALS = {
    "[Errno 1]": "it asked for what no script may do: start a process, open a connection, make a link, signal others",
    "[Errno 13]": "it may read its folder and the libraries, and write output/, checkpoint/ and tmp/ in it",
}
_MESSAGE_BYTES, _PIPE_BYTES = 64 * 1024, 64 * 1024
_LONGEST_LINE = 4_000
_MIB = 1 << 20

Json = dict[str, Any]


class ScriptSandboxUnavailable(Exception):
    """This machine has no sandbox; the message says what is missing."""


class ScriptFailed(Exception):
    """The script ended badly, or was ended for breaking a limit; the message says which and how."""


@dataclass(frozen=True, slots=True)
class ScriptLimits:
    """What a script may use.

    Attributes:
        seconds: of wall time.
        memory: bytes of its own, libraries not counted.
        disk: bytes of all files together that it has written and that are still there.
        threads: that libraries for numbers use, and processors that it has.
    """

    seconds: float
    memory: int
    disk: int
    threads: int


class Listener(Protocol):
    """What is told while a script runs. Whatever it raises ends the script."""

    def line(self, text: str) -> None:
        """It printed a line."""
        ...

    def message(self, message: Json) -> None:
        """It said something through `argosy_run`."""
        ...

    def used(self, usage: Usage) -> None:
        """What it uses now, a few times a second."""
        ...


def printable(text: str) -> str:
    """Without what a database cannot keep: half characters and U+0000."""
    return text.encode(errors="replace").decode().replace("\x00", "\ufffd")


def run_script(folder: Path, entry: str, limits: ScriptLimits, seed: int, step: int, listener: Listener) -> None:
    """Runs a script to its end.

    Args:
        folder: with `code/`, whatever it may read, and `output/`, `checkpoint/` and `tmp/`, which it may write.
        entry: the script, a path in `code/`.
        seed: that it is told.
        step: of the checkpoint in `checkpoint/`; 0: none.

    Raises:
        ScriptSandboxUnavailable: The child cannot close itself in.
        ScriptFailed: It failed, or broke a limit.
        EngineError: STORAGE_FULL, the disk that it writes to is nearly full.
    """
    _Running(folder.resolve(), entry, limits, seed, step, listener).to_the_end()


class _Running:
    def __init__(
        self, folder: Path, entry: str, limits: ScriptLimits, seed: int, step: int, listener: Listener
    ) -> None:
        self._folder, self._limits, self._listener = folder, limits, listener
        self._writable = [folder / name for name in WRITABLE]
        self._least_free = min(_LEAST_FREE, shutil.disk_usage(folder).free // 2)
        self._printed, self._said = bytearray(), bytearray()
        self._confined, self._failure = False, ""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                # No descriptor and no environment of ours.
                self._child = subprocess.Popen(
                    [sys.executable, "-P", "-s", "-B", str(CHILD)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=self._environment(theirs.fileno(), seed, step),
                    cwd="/",
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    bufsize=0,
                )
                settings = self._settings(entry, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        # Who does not read our answers does not hold us up.
        ours.setblocking(False)
        self._channel = ours
        self._started = self._watched = time.monotonic()
        assert self._child.stdin is not None
        # Why a child is gone that did not even read is told where its output ends.
        with suppress(BrokenPipeError), self._child.stdin as stdin:
            stdin.write(json.dumps(settings).encode() + b"\n")

    def to_the_end(self) -> None:
        """Listens and watches until it has ended."""
        assert self._child.stdout is not None
        output = self._child.stdout
        os.set_blocking(output.fileno(), False)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(output, selectors.EVENT_READ, self._read_output)
                selector.register(self._channel, selectors.EVENT_READ, self._read_channel)
                # It may close what we listen to and go on.
                while selector.get_map() or self._child.poll() is None:
                    if not selector.get_map():
                        time.sleep(_WATCH_SECONDS)
                    for key, _ in selector.select(_WATCH_SECONDS) if selector.get_map() else ():
                        began = time.thread_time()
                        if not key.data():
                            selector.unregister(key.fileobj)
                        # Who says more than can be heard at once waits, and takes no core that nobody booked for it.
                        time.sleep(min(_BUSY * (time.thread_time() - began), _WATCH_SECONDS))
                    self._watch_when_due()
            self._require_good_end()
        finally:
            self._end(output)

    def _settings(self, entry: str, channel: int) -> Json:
        # Of our own tree nothing may be read but the module for scripts.
        libraries = [path for path in sys.path if "site-packages" in path or "dist-packages" in path]
        interpreter = [sys.base_prefix, sys.prefix, sysconfig.get_path("stdlib")]
        return {
            "folder": str(self._folder),
            "code": str(self._folder / CODE),
            "entry": entry,
            "channel": channel,
            "helper": str(_HELPER),
            "hidden": [str(_ROOT)],
            "memory": self._limits.memory,
            "disk": self._limits.disk,
            "threads": self._limits.threads,
            "readable": [str(self._folder), str(_HELPER), *interpreter, *libraries, *_SYSTEM],
            "writable": [*map(str, self._writable), *_DEVICES],
            "parent": os.getpid(),
        }

    def _environment(self, channel: int, seed: int, step: int) -> dict[str, str]:
        threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
        return {
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": str(_ROOT),
            "PYTHONUNBUFFERED": "1",
            "LANG": "C.UTF-8",
            "USER": "script",
            # It would only warn that it may start no processes.
            "JOBLIB_MULTIPROCESSING": "0",
            "HOME": str(self._folder / "tmp"),
            "TMPDIR": str(self._folder / "tmp"),
            "ARGOSY_RUN_CHANNEL": str(channel),
            "ARGOSY_RUN_SEED": str(seed),
            "ARGOSY_RUN_STEP": str(step),
            **dict.fromkeys(threads, str(self._limits.threads)),
        }

    def _read_output(self) -> bool:
        assert self._child.stdout is not None
        chunk = os.read(self._child.stdout.fileno(), _PIPE_BYTES)
        *lines, rest = (bytes(self._printed) + chunk).split(b"\n")
        # A line without an end is one after so many characters.
        if len(rest) > _LONGEST_LINE or (not chunk and rest):
            lines, rest = [*lines, rest], b""
        self._printed = bytearray(rest)
        for line in lines:
            self._listener.line(printable(line[:_LONGEST_LINE].decode(errors="replace")))
        return bool(chunk)

    def _read_channel(self) -> bool:
        try:
            chunk = self._channel.recv(_PIPE_BYTES)
        except ConnectionResetError:
            chunk = b""
        *lines, rest = (bytes(self._said) + chunk).split(b"\n")
        self._said = bytearray(rest)
        for line in [*lines, rest] if len(rest) > _MESSAGE_BYTES else lines:
            self._hear(line)
            # One chunk may have thousands of messages, each with a checkpoint to be kept.
            self._watch_when_due()
        return bool(chunk)

    def _hear(self, line: bytes) -> None:
        try:
            message = json.loads(line) if len(line) <= _MESSAGE_BYTES else None
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or not _is_flat(message):
            raise ScriptFailed("it wrote something else than a message into the channel of argosy_run")
        if not self._confined:
            if message.get("missing") != "":
                raise ScriptSandboxUnavailable(f"no sandbox for scripts can be set up here: {message.get('missing')}")
            self._confined = True
        elif "failed" in message:
            self._failure = printable(str(message["failed"]))
        elif "checkpoint" in message:
            # None of its threads changes what is kept, which is within the limits.
            self._stop()
            self._require_disk()
            self._listener.message(message)
            self._child.send_signal(signal.SIGCONT)
            self._answer()
        else:
            self._listener.message(message)

    def _stop(self) -> None:
        """Returns when all its threads stand still, or it has ended."""
        wanted = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
        self._child.send_signal(signal.SIGSTOP)
        # It may tell itself to go on before it stands; its limits end that too.
        while self._child.returncode is None and os.waitid(os.P_PID, self._child.pid, wanted) is None:
            time.sleep(_STOP_SECONDS)
            self._watch_when_due()
            self._child.send_signal(signal.SIGSTOP)

    def _answer(self) -> None:
        try:
            self._channel.send(b"k")
        except BlockingIOError:
            raise ScriptFailed("it asked for many checkpoints and did not wait until they were kept") from None
        except OSError:
            # It has closed the channel.
            return

    def _watch_when_due(self) -> None:
        now = time.monotonic()
        if now - self._watched >= _WATCH_SECONDS:
            self._watched = now
            self._watch(now - self._started)

    def _watch(self, seconds: float) -> None:
        if not self._confined and seconds > _START_SECONDS:
            raise ScriptSandboxUnavailable(f"no sandbox for scripts can be set up here: no answer in {seconds:.0f} s")
        if seconds > self._limits.seconds:
            raise ScriptFailed(f"it ran longer than the {self._limits.seconds:g} s that it may (max_seconds)")
        self._require_disk()
        usage = usage_of(self._child.pid)
        if usage is None:
            return
        if usage.memory > self._limits.memory:
            raise ScriptFailed(f"it used more than the {self._limits.memory // _MIB:,} MiB of memory that it may")
        if usage.threads > _MOST_THREADS:
            raise ScriptFailed(f"it started more than {_MOST_THREADS} threads")
        self._listener.used(usage)

    def _require_disk(self) -> None:
        used, limit = nameless_bytes(self._writable, self._child.pid), self._limits.disk
        try:
            for files, entry in enumerate(entries_below(self._writable), 1):
                path = self._shown(entry.path)
                if len(path.encode()) > _LONGEST_PATH:
                    raise ScriptFailed(f"it made a path of more than {_LONGEST_PATH} bytes: {path[:100]}...")
                if files > _MOST_FILES:
                    raise ScriptFailed(f"it made more than {_MOST_FILES:,} files")
                used += bytes_of(entry)
        except PermissionError as error:
            raise ScriptFailed(f"it made a folder that may not be read: {self._shown(error.filename)}") from None
        if used > limit:
            message = f"its files took more than the {limit // _MIB:,} MiB of disk that they may (max_disk_bytes)"
            raise ScriptFailed(message)
        free = shutil.disk_usage(self._folder).free
        if free < self._least_free:
            message = f"The disk of scripts that run is nearly full: {free // _MIB:,} MiB are left."
            raise EngineError("STORAGE_FULL", message, retryable=True, store="temporary files")

    def _shown(self, path: str) -> str:
        """A path of its files as it knows it."""
        return printable(path.removeprefix(f"{self._folder}/"))

    def _require_good_end(self) -> None:
        code = self._child.wait(timeout=_START_SECONDS)
        if not self._confined:
            raise ScriptSandboxUnavailable(f"no sandbox for scripts can be set up here: {_ended(code)}")
        self._watch(time.monotonic() - self._started)
        if code == 0:
            return
        raise ScriptFailed(f"{self._reached()}{self._failure}" if self._failure else _ended(code))

    def _reached(self) -> str:
        """The limit that an exception of the script's is about, in words; empty: none."""
        if "MemoryError" in self._failure or "allocate memory" in self._failure:
            return f"it needs more than the {self._limits.memory // _MIB:,} MiB of memory that it may use\n"
        if "[Errno 27]" in self._failure:
            limit = self._limits.disk // _MIB
            return f"a file is larger than the {limit:,} MiB of disk that all its files may take (max_disk_bytes)\n"
        return next((f"{may}\n" for number, may in _REFUSALS.items() if number in self._failure), "")

    def _end(self, output: Any) -> None:
        """Leaves nothing behind, whatever happened."""
        self._child.kill()
        self._child.wait()
        output.close()
        self._channel.close()


def _is_flat(message: Json) -> bool:
    """Whether it is as those of argosy_run are: of texts and numbers, and of mappings to them."""
    values = [one for value in message.values() for one in (value.values() if isinstance(value, dict) else [value])]
    return not any(isinstance(one, (dict, list)) for one in values)


def _ended(code: int) -> str:
    if code >= 0:
        return f"its process ended with code {code}"
    return f"its process was ended by {signal.Signals(-code).name}"
