"""The system calls that a script in its sandbox may make: what torch, numpy and scikit-learn need on one CPU process.

Left out are sockets, new processes, other programs, signals to others, owners and modes of files, links, mounts and all
that sets limits or hides memory. Standard library only.
"""

from __future__ import annotations

import errno
import os

from libs.compute import seccomp

# fmt: off
CALLS = {
    "x86_64": {
        "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8,
        "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14,
        "rt_sigreturn": 15, "ioctl": 16, "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21,
        "pipe": 22, "select": 23, "sched_yield": 24, "mremap": 25, "msync": 26, "madvise": 28, "dup": 32, "dup2": 33,
        "nanosleep": 35, "getpid": 39, "sendfile": 40, "clone": 56, "exit": 60, "uname": 63, "fcntl": 72, "flock": 73,
        "fsync": 74, "fdatasync": 75, "ftruncate": 77, "getcwd": 79, "chdir": 80, "fchdir": 81, "rename": 82,
        "mkdir": 83, "rmdir": 84, "unlink": 87, "readlink": 89, "chmod": 90, "fchmod": 91, "umask": 95,
        "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102,
        "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "getgroups": 115, "sigaltstack": 131,
        "statfs": 137, "fstatfs": 138, "getpriority": 140, "sched_getparam": 143, "sched_getscheduler": 145,
        "sched_get_priority_max": 146, "sched_get_priority_min": 147, "prctl": 157, "arch_prctl": 158, "gettid": 186,
        "time": 201, "futex": 202, "sched_getaffinity": 204, "epoll_wait": 232, "epoll_ctl": 233, "getdents64": 217,
        "set_tid_address": 218, "restart_syscall": 219, "fadvise64": 221, "clock_gettime": 228, "clock_getres": 229,
        "clock_nanosleep": 230, "exit_group": 231, "tgkill": 234, "get_mempolicy": 239, "openat": 257, "mkdirat": 258,
        "newfstatat": 262, "unlinkat": 263, "renameat": 264, "readlinkat": 267, "fchmodat": 268, "faccessat": 269,
        "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "utimensat": 280, "epoll_pwait": 281, "fallocate": 285,
        "eventfd2": 290, "epoll_create1": 291, "dup3": 292, "pipe2": 293, "preadv": 295, "pwritev": 296,
        "prlimit64": 302, "getcpu": 309, "renameat2": 316, "getrandom": 318, "membarrier": 324,
        "copy_file_range": 326, "statx": 332, "rseq": 334, "clone3": 435, "close_range": 436, "faccessat2": 439,
    },
    "aarch64": {
        "getcwd": 17, "eventfd2": 19, "epoll_create1": 20, "epoll_ctl": 21, "epoll_pwait": 22, "dup": 23, "dup3": 24,
        "fcntl": 25, "ioctl": 29, "flock": 32, "mkdirat": 34, "unlinkat": 35, "renameat": 38, "statfs": 43,
        "fstatfs": 44, "ftruncate": 46, "fallocate": 47, "faccessat": 48, "chdir": 49, "fchdir": 50, "fchmod": 52,
        "fchmodat": 53, "openat": 56, "close": 57, "pipe2": 59, "getdents64": 61, "lseek": 62, "read": 63,
        "write": 64, "readv": 65, "writev": 66, "pread64": 67, "pwrite64": 68, "preadv": 69, "pwritev": 70,
        "sendfile": 71, "pselect6": 72, "ppoll": 73, "readlinkat": 78, "newfstatat": 79, "fstat": 80, "fsync": 82,
        "fdatasync": 83, "utimensat": 88, "exit": 93, "exit_group": 94, "set_tid_address": 96, "futex": 98,
        "set_robust_list": 99, "nanosleep": 101, "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115,
        "sched_getscheduler": 120, "sched_getparam": 121, "sched_getaffinity": 123, "sched_yield": 124,
        "sched_get_priority_max": 125, "sched_get_priority_min": 126, "restart_syscall": 128, "tgkill": 131,
        "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "getpriority": 141,
        "times": 153, "getgroups": 158, "uname": 160, "getrlimit": 163, "getrusage": 165, "umask": 166, "prctl": 167,
        "getcpu": 168, "gettimeofday": 169, "getpid": 172, "getppid": 173, "getuid": 174, "geteuid": 175,
        "getgid": 176, "getegid": 177, "gettid": 178, "sysinfo": 179, "brk": 214, "munmap": 215, "mremap": 216,
        "clone": 220, "mmap": 222, "fadvise64": 223, "mprotect": 226, "msync": 227, "madvise": 233,
        "get_mempolicy": 236, "prlimit64": 261, "renameat2": 276, "getrandom": 278, "membarrier": 283,
        "copy_file_range": 285, "statx": 291, "rseq": 293, "clone3": 435, "close_range": 436, "faccessat2": 439,
    },
}
# fmt: on

# <linux/sched.h>: threads, and no processes; none with memory, folders or descriptors of its own, which nobody counts.
# Of clone3 the flags cannot be seen: the library then takes clone.
_CLONE_VM, _CLONE_FS, _CLONE_FILES, _CLONE_THREAD = 0x100, 0x200, 0x400, 0x10000
_THREAD = _CLONE_VM | _CLONE_FS | _CLONE_FILES | _CLONE_THREAD
# open(2): to empty a file without the right to write it is nothing that an older Landlock governs, and access mode 3,
# neither reading nor writing, is nothing that any Landlock governs.
_ACCESS_OR_TRUNCATE, _REFUSED_OPENS = 0o1003, (0o1000, 0o0003, 0o1003)
# fallocate(2): only with the size of a file, which has a limit.
_FALLOCATE = (0,)
# fcntl(2): duplicates, flags and locks. Not the owner of a file's signals, who could be anybody.
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)
# ioctl(2): what a terminal is asked, bytes that wait, and flags of a descriptor.
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# prctl(2): names of threads and of memory. Above all not what the death of the parent does.
_PRCTL = (15, 16, 0x53564D41)


def guards() -> dict[str, seccomp.Rule]:
    """What is allowed of calls that could do more; for the process that asks."""
    return {
        "clone": seccomp.only_with(0, _THREAD),
        "clone3": seccomp.answered(errno.ENOSYS),
        "open": seccomp.unless_masked(1, _ACCESS_OR_TRUNCATE, _REFUSED_OPENS),
        "openat": seccomp.unless_masked(2, _ACCESS_OR_TRUNCATE, _REFUSED_OPENS),
        "fallocate": seccomp.only(1, _FALLOCATE),
        "fcntl": seccomp.only(1, _FCNTL),
        "ioctl": seccomp.only(1, _IOCTL),
        "prctl": seccomp.only(0, _PRCTL),
        "prlimit64": seccomp.only_nothing(2),
        "tgkill": seccomp.only(0, [os.getpid()]),
        # Copies of files have no modes of their own; who asks for some goes on without.
        **dict.fromkeys(("chmod", "fchmod", "fchmodat", "utimensat"), seccomp.answered(0)),
    }
