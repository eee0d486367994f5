"""Landlock: which files a process may still open. Standard library only; for root and ordinary users alike.

Sources: landlock(7), linux/landlock.h. Its calls have the same numbers on every machine.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from libs.compute.seccomp import Missing

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE = 1 << 13, 1 << 14
# Rights that each version of Landlock governs; whatever it governs and is not given is refused. What an older one does
# not know (TRUNCATE) is refused by the system call filter.
_GOVERNED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_READ = _READ_FILE | _READ_DIR
# No links, sockets, pipes or devices, and nothing that could be run.
_CHANGE = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
_OF_FILES = _READ_FILE | _WRITE_FILE | _TRUNCATE


def allow_files(libc: ctypes.CDLL, readable: Iterable[str], writable: Iterable[str]) -> None:
    """Lets this process open what lies below these paths, and nothing else, from now on.

    Args:
        libc: with the error number kept.
        readable: files and folders; those that are not there are left out.
        writable: files and folders in which files are read, written, made and removed.

    Raises:
        Missing: The kernel has no Landlock.
    """
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        raise Missing(f"the kernel has no Landlock: {os.strerror(ctypes.get_errno())}")
    governed = _GOVERNED[max(known for known in _GOVERNED if known <= version)]
    attributes = struct.pack("=Q", governed)
    ruleset = _asked(libc, _CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        for paths, rights in ((readable, _READ), (writable, _CHANGE)):
            for path in paths:
                _allow(libc, ruleset, path, rights & governed)
        _asked(libc, _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    try:
        at = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rights &= -1 if os.path.isdir(path) else _OF_FILES
        _asked(libc, _ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, at), 0)
    finally:
        os.close(at)


def _asked(libc: ctypes.CDLL, call: int, *arguments: object) -> int:
    answer = libc.syscall(call, *arguments)
    if answer < 0:
        raise Missing(f"Landlock (call {call}): {os.strerror(ctypes.get_errno())}")
    return answer
