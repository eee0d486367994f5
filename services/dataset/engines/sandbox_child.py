"""The inside of the sandbox: a program that closes itself in and then calls a function for every line that it reads.

Only the standard library is imported, because it starts once for each shard of rows. What keeps a function in is the
kernel: seccomp lets through reading the one pipe, writing the other, memory that cannot be executed, and the end of
the process. There is no call left that opens a file or a socket, starts or signals a process, or sets a limit. It is a
list of what may be done, so a kernel with new calls opens nothing. No privilege and no namespace is needed, so it
works for root, for an ordinary user and in a container alike.

Sources: seccomp(2); linux/seccomp.h, linux/filter.h, linux/audit.h; the system call tables of x86_64 and aarch64.
"""

from __future__ import annotations

import codecs
import ctypes
import importlib
import json
import os
import platform
import random
import resource
import signal
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

_ENTRY = "row"
_FILE = "<function>"
_LONGEST_ERROR = 300
# Loaded when first used, which is too late here.
_LAZY = ("_strptime",)
_CODECS = ("utf-8", "utf-16", "latin-1", "ascii", "cp1252", "gbk", "gb18030", "big5", "shift_jis")
# The other side ends a row that takes too long; this ends a child that lost it.
_CPU_SECONDS = 3600

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_KILL, _DENY, _ALLOW = 0x8000_0000, 0x0005_0000 | 1, 0x7FFF_0000
_LOAD, _EQUAL, _GREATER_OR_EQUAL, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Where struct seccomp_data has the number of the call, the architecture, and the low half of each argument.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_PROT_EXEC = 4
# Calls of the x32 interface have this bit; they could reach others than their number says.
_X32 = 0x4000_0000
_NOBODY = 65534

# Architecture: its audit number, and the numbers of the calls that are allowed.
# fmt: off
_CALLS = {
    "x86_64": (0xC000003E, {
        "read": 0, "write": 1, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigreturn": 15, "mremap": 25,
        "madvise": 28, "exit": 60, "futex": 202, "restart_syscall": 219, "clock_gettime": 228, "exit_group": 231,
    }),
    "aarch64": (0xC00000B7, {
        "read": 63, "write": 64, "exit": 93, "exit_group": 94, "futex": 98, "clock_gettime": 113,
        "restart_syscall": 128, "rt_sigreturn": 139, "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222,
        "mprotect": 226, "madvise": 233,
    }),
}
# fmt: on


class Missing(Exception):
    """Something that the sandbox needs is not there; the message says what."""


def main() -> None:
    """Reads settings, closes itself in, reads the function, and answers each row after that."""
    lines = sys.stdin.buffer
    settings = json.loads(lines.readline())
    missing = ""
    try:
        _load(settings["modules"])
        confine(settings["memory"])
    except Missing as error:
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
    _control(libc, _PR_SET_PDEATHSIG, signal.SIGKILL)
    _control(libc, _PR_SET_DUMPABLE, 0)
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
    _control(libc, _PR_SET_NO_NEW_PRIVS, 1)
    program = _filter()
    buffer = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _control(libc, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(described))
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


def _control(libc: ctypes.CDLL, option: int, *arguments: Any) -> None:
    """Calls prctl(2). Raises `Missing` where the kernel refuses."""
    words = [one if isinstance(one, ctypes.Array) else ctypes.c_ulong(one) for one in arguments]
    try:
        done = libc.prctl(option, *words, *[ctypes.c_ulong(0)] * (4 - len(words)))
    except AttributeError:
        raise Missing("this is no Linux") from None
    if done != 0:
        raise Missing(f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def _filter() -> bytes:
    """The seccomp filter as classic BPF. What is not allowed fails with EPERM, so a function gets an exception."""
    machine = platform.machine()
    if machine not in _CALLS or struct.calcsize("P") != 8:
        raise Missing(f"there is no list of system calls for {machine}")
    architecture, calls = _CALLS[machine]
    guarded = {
        "read": _only_if(_EQUAL, 0, argument=0),
        "write": _only_if(_EQUAL, 1, argument=0),
        "mmap": _unless(_HAS_BITS, _PROT_EXEC, argument=2),
        "mprotect": _unless(_HAS_BITS, _PROT_EXEC, argument=2),
    }
    program = [_step(_LOAD, _ARCHITECTURE), _step(_EQUAL, architecture, 1, 0), _step(_RETURN, _KILL)]
    program += [_step(_LOAD, _NUMBER), _step(_GREATER_OR_EQUAL, _X32, 0, 1), _step(_RETURN, _KILL)]
    for name, number in calls.items():
        block = guarded.get(name, [_step(_RETURN, _ALLOW)])
        program += [_step(_EQUAL, number, 0, len(block)), *block]
    return b"".join([*program, _step(_RETURN, _DENY)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter; jumps count the steps that are left out."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _only_if(test: int, value: int, *, argument: int) -> list[bytes]:
    load = _step(_LOAD, _ARGUMENTS + 8 * argument)
    return [load, _step(test, value, 0, 1), _step(_RETURN, _ALLOW), _step(_RETURN, _DENY)]


def _unless(test: int, value: int, *, argument: int) -> list[bytes]:
    load = _step(_LOAD, _ARGUMENTS + 8 * argument)
    return [load, _step(test, value, 1, 0), _step(_RETURN, _ALLOW), _step(_RETURN, _DENY)]


def _prove() -> None:
    """Tries what must fail now: some emulated kernels take a filter and ignore it."""
    try:
        os.open("/", os.O_RDONLY)
    except PermissionError:
        return
    except OSError as error:
        raise Missing(f"seccomp has no effect here: {error.strerror}") from None
    raise Missing("seccomp has no effect here")


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
