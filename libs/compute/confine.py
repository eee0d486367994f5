"""What a process gives up before it opens a file of a stranger. The wall clock is its parent's."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import BinaryIO

from libs.compute import seccomp

# <linux/sched.h>
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


def limit_resources(memory_bytes: int, open_files: int, file_bytes: int) -> None:
    """Limits that hold for the whole life of the process.

    Args:
        memory_bytes: address space.
        open_files: descriptors.
        file_bytes: of a file that it writes.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def leave_network() -> bool:
    """Moves into a network of nothing; says whether the kernel allowed it."""
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    return unshare(_CLONE_NEWNET) == 0 or unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0


def end_with_parent(libc: ctypes.CDLL, parent: int) -> None:
    """Ends this process when its parent does; at once where that has happened already.

    Args:
        libc: with the error number kept.
        parent: process id of it.
    """
    seccomp.control(libc, seccomp.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def private_output() -> BinaryIO:
    """Standard output for answers alone: what libraries print goes nowhere."""
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return answers
