"""The inside of a script's sandbox: a program that closes itself in and then becomes the script.

What keeps a script in is the kernel: Landlock gives it its own folder and the libraries to read, and three folders to
write; seccomp leaves out every call that makes a socket or a process (`script_calls.py`). Neither needs a privilege.
Where a user may give up the network and capabilities, those go too. Standard library only; time, memory, threads and
the disk are watched by the parent (`script_sandbox.py`).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import runpy
import socket
import sys
import traceback
from typing import Any

from libs.compute import confine, landlock, script_calls, seccomp

_LONGEST_ERROR = 2_000
_OPEN_FILES = 256
# <linux/capability.h>, version 3 with two words of each set.
_CAPABILITY_VERSION = 0x20080522


def main() -> None:
    """Reads its settings, closes itself in and runs the script; 0, or 1 where that failed."""
    settings: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    channel: int = settings["channel"]
    os.chdir(settings["folder"])
    del os.environ["PYTHONPATH"]
    try:
        close_in(settings)
    except seccomp.Missing as error:
        _say(channel, {"missing": str(error)})
        return
    _say(channel, {"missing": ""})
    # Not before: whatever was imported until here was ours.
    sys.path[:] = [settings["code"], settings["helper"], *(path for path in sys.path if path not in settings["hidden"])]
    # A package of its own may be called libs too.
    for name in [name for name in sys.modules if name.partition(".")[0] == "libs"]:
        del sys.modules[name]
    sys.argv[:] = [settings["entry"]]
    try:
        runpy.run_path(os.path.join(settings["code"], settings["entry"]), run_name="__main__")
    except SystemExit as stop:
        _flush()
        if stop.code not in (None, 0):
            _say(channel, {"failed": f"SystemExit: {stop.code}"[:_LONGEST_ERROR]})
            os._exit(1)
    # Whatever a script raises is how it ends.
    except BaseException as error:
        told = _traceback(error, settings["code"])
        print(told, file=sys.stderr)
        _flush()
        # Its end names what happened.
        _say(channel, {"failed": told if len(told) <= _LONGEST_ERROR else f"... {told[-_LONGEST_ERROR:]}"})
        os._exit(1)
    _flush()
    # Threads that it left behind end with it.
    os._exit(0)


def close_in(settings: dict[str, Any]) -> None:
    """Gives up the network, files beside its own, capabilities, limits and all other calls.

    Raises:
        Missing: It cannot; nothing foreign may run then.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    confine.leave_network()
    limit_resources(settings["memory"], settings["disk"])
    limit_processors(settings["threads"])
    seccomp.control(libc, seccomp.PR_SET_NO_NEW_PRIVS, 1)
    open_files(libc, settings["readable"], settings["writable"])
    drop_capabilities(libc)
    # After the capabilities, whose change would take this away.
    confine.end_with_parent(libc, settings["parent"])
    filter_calls(libc)
    _prove()


def limit_resources(memory: int, disk: int) -> None:
    """Memory of its own, the size of a file, descriptors, no core dump."""
    for what, most in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_FSIZE, disk),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def limit_processors(most: int) -> None:
    """Leaves so many processors; not always the first ones, which scripts side by side would share."""
    allowed = sorted(os.sched_getaffinity(0))
    begin = os.getpid() % len(allowed)
    os.sched_setaffinity(0, (2 * allowed)[begin : begin + most])


def open_files(libc: ctypes.CDLL, readable: list[str], writable: list[str]) -> None:
    """Leaves only these files and folders."""
    landlock.allow_files(libc, readable, writable)


def drop_capabilities(libc: ctypes.CDLL) -> None:
    """Root without capabilities may do what an ordinary user may."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise seccomp.Missing(f"capset: {os.strerror(ctypes.get_errno())}")


def filter_calls(libc: ctypes.CDLL) -> None:
    """Leaves only the calls of `script_calls`."""
    seccomp.install(libc, script_calls.CALLS, script_calls.guards())


def _prove() -> None:
    """Tries what must fail now: some emulated kernels take a filter and ignore it."""
    try:
        os.close(os.open("/", os.O_RDONLY))
    except PermissionError:
        pass
    else:
        raise seccomp.Missing("Landlock has no effect here")
    try:
        socket.socket().close()
    except PermissionError:
        return
    raise seccomp.Missing("seccomp has no effect here")


def _traceback(error: BaseException, code: str) -> str:
    """The exception with the frames of the script and of what it called."""
    trace = error.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith(code):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)).replace(f"{code}/", "").rstrip()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        # It may have closed or replaced them.
        except Exception:  # noqa: S112
            continue


def _say(channel: int, message: dict[str, Any]) -> None:
    os.write(channel, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
