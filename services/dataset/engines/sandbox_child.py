"""The inside of the sandbox: a program that closes itself in and then calls a function for every line that it reads.

Only the standard library is imported, because it starts once for each shard of rows. What keeps a function in is the
kernel: seccomp (`libs/compute/seccomp.py`) lets through reading the one pipe, writing the other, memory that cannot be
executed, and the end of the process. There is no call left that opens a file or a socket, starts or signals a process,
or sets a limit.
"""

from __future__ import annotations

import codecs
import ctypes
import importlib
import json
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from libs.compute import seccomp

_ENTRY = "row"
_FILE = "<function>"
_LONGEST_ERROR = 300
# Loaded when first used, which is too late here.
_LAZY = ("_strptime",)
_CODECS = ("utf-8", "utf-16", "latin-1", "ascii", "cp1252", "gbk", "gb18030", "big5", "shift_jis")
# The other side ends a row that takes too long; this ends a child that lost it.
_CPU_SECONDS = 3600

_PROT_EXEC = 4
_NOBODY = 65534

# Machine: the numbers of the calls that are allowed.
# fmt: off
_CALLS = {
    "x86_64": {
        "read": 0, "write": 1, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigreturn": 15, "mremap": 25,
        "madvise": 28, "exit": 60, "futex": 202, "restart_syscall": 219, "clock_gettime": 228, "exit_group": 231,
    },
    "aarch64": {
        "read": 63, "write": 64, "exit": 93, "exit_group": 94, "futex": 98, "clock_gettime": 113,
        "restart_syscall": 128, "rt_sigreturn": 139, "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222,
        "mprotect": 226, "madvise": 233,
    },
}
# fmt: on


def main() -> None:
    """Reads settings, closes itself in, reads the function, and answers each row after that."""
    lines = sys.stdin.buffer
    settings = json.loads(lines.readline())
    missing = ""
    try:
        _load(settings["modules"])
        confine(settings["memory"])
    except seccomp.Missing as error:
        missing = str(error)
    _say({"missing": missing})
    if missing:
        return
    source = json.loads(lines.readline())
    # What a function prints goes nowhere: the pipe is for answers.
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None
    try:
        function = _define(source)
    except BaseException as error:
        _say({"error": _describe(error)})
        return
    _say({"error": ""})
    for line in lines:
        # The same row gets the same random numbers, whichever rows came before.
        random.seed(line)
        _write(_answer(function, json.loads(line)))


def confine(memory: int) -> None:
    """Gives up everything but two pipes and so many bytes of memory.

    Raises:
        Missing: It cannot; nothing foreign may run then.
    """
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_importer_cache.clear()
    os.environ.clear()
    # Root without the right to become another user has no other rights of root either.
    with suppress(PermissionError):
        _become_nobody()
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp.control(libc, seccomp.PR_SET_PDEATHSIG, signal.SIGKILL)
    seccomp.control(libc, seccomp.PR_SET_DUMPABLE, 0)
    # One process, no files, no core dump, so much memory.
    for what, most in (
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_AS, memory),
    ):
        resource.setrlimit(what, (most, most))
    guards = {
        "read": seccomp.only(0, [0]),
        "write": seccomp.only(0, [1]),
        "mmap": seccomp.unless(2, _PROT_EXEC),
        "mprotect": seccomp.unless(2, _PROT_EXEC),
    }
    seccomp.install(libc, _CALLS, guards)
    _prove()


def _load(modules: list[str]) -> None:
    """Imports what a function may import: afterwards there are no files."""
    for module in (*modules, *_LAZY):
        importlib.import_module(module)
    for codec in _CODECS:
        codecs.lookup(codec)


def _become_nobody() -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _prove() -> None:
    """Tries what must fail now: some emulated kernels take a filter and ignore it."""
    try:
        os.open("/", os.O_RDONLY)
    except PermissionError:
        return
    except OSError as error:
        raise seccomp.Missing(f"seccomp has no effect here: {error.strerror}") from None
    raise seccomp.Missing("seccomp has no effect here")


def _define(source: str) -> Callable[[Any], Any]:
    names: dict[str, Any] = {"__name__": "function"}
    # allow(eval): this process was closed in for it.
    exec(compile(source, _FILE, "exec"), names)  # noqa: S102
    return names[_ENTRY]


def _answer(function: Callable[[Any], Any], row: dict[str, Any]) -> str:
    try:
        given = function(row)
        if given is None or given is False:
            return json.dumps({"dropped": str(given)})
        kept = row if given is True else given
        if not isinstance(kept, dict):
            return json.dumps({"error": f"it gave {type(kept).__name__}; wanted is the row, True, False or None"})
        return json.dumps({"row": kept})
    except BaseException as error:
        return json.dumps({"error": _describe(error)})


def _describe(error: BaseException) -> str:
    """The exception and the last line of the function that it went through."""
    line = _line(error.__traceback__)
    if isinstance(error, SyntaxError):
        line = error.lineno
    place = f"line {line}: " if line else ""
    return f"{place}{type(error).__name__}: {error}"[:_LONGEST_ERROR]


def _line(trace: TracebackType | None) -> int | None:
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _FILE:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _say(answer: dict[str, Any]) -> None:
    _write(json.dumps(answer))


def _write(line: str) -> None:
    data = memoryview(line.encode() + b"\n")
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()
