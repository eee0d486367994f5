"""System call filters: a list of what a process may still ask of the kernel. Standard library only.

It is a list of what may be done, so a kernel with new calls opens nothing. No privilege and no namespace is needed, so
it works for root, for an ordinary user and in a container alike.

Sources: seccomp(2); linux/seccomp.h, linux/filter.h, linux/audit.h; the system call tables of x86_64 and aarch64.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterable, Mapping
from typing import Any

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
MODE_FILTER = 2
KILL, DENY, ALLOW = 0x8000_0000, 0x0005_0000 | 1, 0x7FFF_0000
_ERRNO = 0x0005_0000
_LOAD, _EQUAL, _GREATER_OR_EQUAL, _HAS_BITS, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
# Where struct seccomp_data has the number of the call, the architecture, and the low half of each argument.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
# Calls of the x32 interface have this bit; they could reach others than their number says.
_X32 = 0x4000_0000
# Audit numbers.
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

Rule = list[bytes]


class Missing(Exception):
    """Something that a sandbox needs is not there; the message says what."""


def control(libc: ctypes.CDLL, option: int, *arguments: Any) -> None:
    """Calls prctl(2). Raises `Missing` where the kernel refuses."""
    words = [one if isinstance(one, ctypes.Array) else ctypes.c_ulong(one) for one in arguments]
    try:
        done = libc.prctl(option, *words, *[ctypes.c_ulong(0)] * (4 - len(words)))
    except AttributeError:
        raise Missing("this is no Linux") from None
    if done != 0:
        raise Missing(f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def install(libc: ctypes.CDLL, calls: Mapping[str, Mapping[str, int]], guards: Mapping[str, Rule]) -> None:
    """Lets this thread, and what it starts, make these calls and no others; others fail with EPERM.

    Args:
        calls: by machine: name to number of each call.
        guards: rules for some of them; the others may be made as one likes.

    Raises:
        Missing: The kernel takes no filter, or there is no list for this machine.
    """
    control(libc, PR_SET_NO_NEW_PRIVS, 1)
    program = _program(calls, guards)
    buffer = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    control(libc, PR_SET_SECCOMP, MODE_FILTER, ctypes.create_string_buffer(described))


def only(argument: int, values: Iterable[int]) -> Rule:
    """Allowed where an argument (32 bits) has one of these values."""
    tests = [step for value in values for step in (_step(_EQUAL, value, 0, 1), _step(_RETURN, ALLOW))]
    return [_step(_LOAD, _ARGUMENTS + 8 * argument), *tests, _step(_RETURN, DENY)]


def only_nothing(argument: int) -> Rule:
    """Allowed where an argument (64 bits) is zero: no pointer."""
    low, high = _ARGUMENTS + 8 * argument, _ARGUMENTS + 8 * argument + 4
    return [
        *(_step(_LOAD, low), _step(_EQUAL, 0, 1, 0), _step(_RETURN, DENY)),
        *(_step(_LOAD, high), _step(_EQUAL, 0, 1, 0), _step(_RETURN, DENY), _step(_RETURN, ALLOW)),
    ]


def unless(argument: int, bits: int) -> Rule:
    """Allowed where an argument has none of these bits."""
    load = _step(_LOAD, _ARGUMENTS + 8 * argument)
    return [load, _step(_HAS_BITS, bits, 1, 0), _step(_RETURN, ALLOW), _step(_RETURN, DENY)]


def only_with(argument: int, bits: int) -> Rule:
    """Allowed where an argument has all of these bits."""
    load = [_step(_LOAD, _ARGUMENTS + 8 * argument), _step(_AND, bits)]
    return [*load, _step(_EQUAL, bits, 0, 1), _step(_RETURN, ALLOW), _step(_RETURN, DENY)]


def unless_masked(argument: int, mask: int, values: Iterable[int]) -> Rule:
    """Allowed where an argument has none of these values under a mask."""
    load = [_step(_LOAD, _ARGUMENTS + 8 * argument), _step(_AND, mask)]
    tests = [step for value in values for step in (_step(_EQUAL, value, 0, 1), _step(_RETURN, DENY))]
    return [*load, *tests, _step(_RETURN, ALLOW)]


def answered(errno: int) -> Rule:
    """Never made, and answered with an error number; 0: as if it had been made."""
    return [_step(_RETURN, _ERRNO | errno)]


def _program(calls: Mapping[str, Mapping[str, int]], guards: Mapping[str, Rule]) -> bytes:
    """The filter as classic BPF. What is not allowed fails with EPERM, so foreign code gets an exception."""
    machine = platform.machine()
    if machine not in calls or struct.calcsize("P") != 8:
        raise Missing(f"there is no list of system calls for {machine}")
    program = [_step(_LOAD, _ARCHITECTURE), _step(_EQUAL, _ARCHITECTURES[machine], 1, 0), _step(_RETURN, KILL)]
    program += [_step(_LOAD, _NUMBER), _step(_GREATER_OR_EQUAL, _X32, 0, 1), _step(_RETURN, KILL)]
    for name, number in calls[machine].items():
        block = guards.get(name, [_step(_RETURN, ALLOW)])
        program += [_step(_EQUAL, number, 0, len(block)), *block]
    return b"".join([*program, _step(_RETURN, DENY)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter; jumps count the steps that are left out."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
