"""Attacks from inside a function: each fails in the sandbox, and works in the same child when it is not closed in."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.dataset.engines import sandbox, sandbox_child
from services.dataset.engines.sandbox import CHILD, ROOT, Limits, Sandbox, SandboxUnavailable, Stopped

MIB = 1024 * 1024
LIMITS = Limits(seconds=5, memory=256 * MIB)

# The child as it is, but for one line that is replaced.
PATCHED = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("child", {child!r})
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
{change}
child.main()
"""

Change = Callable[[str], None]


@pytest.fixture
def changed_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Change:
    """Starts children in which `change` was done before they close themselves in."""

    def use(change: str) -> None:
        file = tmp_path / "child.py"
        file.write_text(PATCHED.format(child=str(CHILD), change=change))
        monkeypatch.setattr(sandbox, "CHILD", file)

    return use


@contextmanager
def function(source: str, limits: Limits = LIMITS) -> Generator[Sandbox]:
    made = Sandbox(source, limits)
    try:
        yield made
    finally:
        made.close()


def answer(source: str, row: dict[str, object], limits: Limits = LIMITS) -> dict[str, object]:
    """What the function says about one row."""
    with function(source, limits) as made:
        (line,) = made.call([json.dumps(row).encode()])
    return json.loads(line)


# Each gives True where it works; `row` has a `file` that may be read, a `port` that answers, and the `parent`.
ATTACKS = {
    "read a file": "import os\ndef row(row):\n    return 'secret' in open(row['file']).read()",
    "read the passwords": "def row(row):\n    return 'root' in open('/etc/passwd').read()",
    "write a file": "def row(row):\n    return open(row['file'], 'a').write('x') == 1",
    "list a folder": "import os\ndef row(row):\n    return len(os.listdir('/')) > 0",
    "remove a file": "import os\ndef row(row):\n    return os.remove(row['file']) is None",
    "read own memory": "def row(row):\n    return open('/proc/self/maps').read() != ''",
    "connect": (
        "import _socket\ndef row(row):\n    s = _socket.socket()\n    s.connect(('127.0.0.1', row['port']))\n"
        "    return True"
    ),
    "talk to a local socket": "import _socket\ndef row(row):\n    _socket.socketpair()\n    return True",
    "fork": (
        "import os\ndef row(row):\n    child = os.fork()\n    if not child:\n        os._exit(0)\n"
        "    return os.waitpid(child, 0)[0] == child"
    ),
    "start a thread": (
        "import _thread\ndef row(row):\n    lock = _thread.allocate_lock()\n    lock.acquire()\n"
        "    _thread.start_new_thread(lock.release, ())\n    return lock.acquire(timeout=5)"
    ),
    "start a program": "import subprocess\ndef row(row):\n    return subprocess.run(['/bin/true']).returncode == 0",
    "become a program": (
        "import os\ndef row(row):\n    os.execv('/bin/sh', ['sh', '-c', 'echo \\'{\"row\":{\"shell\":1}}\\'; sleep 1'])"
    ),
    "signal the parent": "import os, signal\ndef row(row):\n    return os.kill(row['parent'], signal.SIGURG) is None",
    "write to the errors": "import os\ndef row(row):\n    return os.write(2, b'x') == 1",
    "duplicate a pipe": "import os\ndef row(row):\n    return os.dup(1) > 0",
    "raise a limit": (
        "import resource\ndef row(row):\n    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n    return True"
    ),
    "import a module from a file": "def row(row):\n    import sqlite3\n    return True",
    "load a library": "import ctypes\ndef row(row):\n    return ctypes.CDLL('libresolv.so.2') is not None",
    "call the kernel": "import ctypes\ndef row(row):\n    return ctypes.CDLL(None).syscall(39) > 0",
    "make memory executable": (
        "import ctypes, mmap\ndef row(row):\n    libc = ctypes.CDLL(None)\n    libc.mmap.restype = ctypes.c_void_p\n"
        "    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]\n"
        "    return libc.mmap(None, 4096, 7, 0x22, -1, 0) != 2**64 - 1"
    ),
    "trace another process": (
        "import ctypes, os\ndef row(row):\n    libc = ctypes.CDLL(None)\n    return libc.ptrace(0, 0, 0, 0) == 0"
    ),
}
# What an attack needs beside what the sandbox has loaded: these must fail by the filter, not for want of a module.
LOADED = "child._LAZY = (*child._LAZY, '_socket', 'subprocess', '_thread', 'mmap')"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[dict[str, object]]:
    """A file that may be read and written, and a port that answers."""
    file = tmp_path / "file"
    file.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {"file": str(file), "port": server.getsockname()[1], "parent": os.getpid()}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_fails_in_the_sandbox(attack: str, target: dict[str, object], changed_child: Change) -> None:
    changed_child(LOADED)
    given = answer(ATTACKS[attack], target)
    assert "row" not in given, attack
    # EPERM is the filter's; EACCES would be that of an ordinary user, which the filter is to make needless.
    assert "Errno 13" not in str(given)


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_works_without_the_filter(attack: str, target: dict[str, object], changed_child: Change) -> None:
    changed_child(f"{LOADED}\nchild.confine = lambda memory: None")
    signal.signal(signal.SIGURG, signal.SIG_IGN)
    assert "row" in answer(ATTACKS[attack], target), attack


EVERY_CALL = """
import ctypes
def row(row):
    libc = ctypes.CDLL(None, use_errno=True)
    def refused(number, *arguments):
        words = [ctypes.c_long(word) for word in [*arguments, *[-1] * 6][:6]]
        return libc.syscall(number, *words) == -1 and ctypes.get_errno() == 1
    others = [number for number in range(600) if number not in row["allowed"] and not refused(number)]
    bad = [list(call) for call in row["bad"] if not refused(*call)]
    return {"others": others, "bad": bad}
"""


def test_every_other_system_call_is_refused() -> None:
    """Asked of the kernel itself, by native code."""
    calls = sandbox_child._CALLS[platform.machine()]
    executable, anywhere = 0x7, 0x22
    bad = [
        (calls["read"], 1, 0, 0),
        (calls["read"], 7, 0, 0),
        (calls["write"], 0, 0, 0),
        (calls["write"], 2, 0, 0),
        (calls["mmap"], 0, 4096, executable, anywhere, -1, 0),
        (calls["mprotect"], 0, 4096, executable),
    ]
    # Of x86_64, uretprobe and uprobe: Linux lets its own trampolines of probes past seccomp; from elsewhere the one is
    # answered by SIGILL, the other by ENXIO.
    trampolines = (335, 336) if platform.machine() == "x86_64" else ()
    row: dict[str, Any] = {"allowed": [*calls.values(), *trampolines], "bad": bad}
    assert answer(EVERY_CALL, row) == {"row": {"others": [], "bad": []}}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86_64 has the x32 interface")
def test_the_x32_interface_ends_the_child() -> None:
    source = "import ctypes\ndef row(row):\n    return ctypes.CDLL(None).syscall(0x40000000 | 39)"
    with pytest.raises(Stopped, match="SIGSYS"):
        answer(source, {})


# Attacks on time and memory end the sandbox, or the row, and the machine stays as it is.
EXHAUSTIONS = {
    "for ever": ("def row(row):\n    while True:\n        pass", "no answer in 1 s"),
    "asleep": ("import time\ndef row(row):\n    time.sleep(60)", "PermissionError"),
    "memory": ("def row(row):\n    return {'a': len(bytearray(10**9))}", "MemoryError"),
    "many objects": ("def row(row):\n    kept = []\n    while True:\n        kept.append([0] * 1000)", "MemoryError"),
    "a long answer": ("def row(row):\n    return {'a': 'x' * 60_000_000}", "its answer is longer than"),
    "many answers": (
        "import os\ndef row(row):\n    while True:\n        os.write(1, b'{}\\n' * 1000)",
        "it wrote into the channel of its answers",
    ),
    "the end": ("import os\ndef row(row):\n    os._exit(3)", "its process ended with code 3"),
    "a crash": ("import ctypes\ndef row(row):\n    ctypes.string_at(0)", "its process was ended by SIGSEGV"),
    "deep recursion": (
        "def row(row):\n    return row(row) if False else deep(row)\ndef deep(x):\n    return deep(x)",
        "RecursionError",
    ),
}


@pytest.mark.parametrize("name", EXHAUSTIONS)
def test_exhaustion_ends(name: str) -> None:
    source, says = EXHAUSTIONS[name]
    started = time.monotonic()
    limits = Limits(1.0 if name == "for ever" else 20.0, 512 * MIB)
    try:
        said = str(answer(source, {}, limits))
    except Stopped as stopped:
        said = str(stopped)
    assert says in said
    assert time.monotonic() - started < 20


def test_memory_is_there_without_the_limit(changed_child: Change) -> None:
    changed_child("child.confine = lambda memory: None")
    assert answer(EXHAUSTIONS["memory"][0], {}) == {"row": {"a": 10**9}}


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_SECRET", "secret")
    source = "import os\ndef row(row):\n    return {'environment': dict(os.environ), 'file': str(os.environb)}"
    assert answer(source, {}) == {"row": {"environment": {}, "file": "environ({})"}}


def test_no_descriptor_is_inherited(tmp_path: Path) -> None:
    """Not even one that is made to be inherited."""
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        source = f"import os\ndef row(row):\n    return os.write({file.fileno()}, b'x') == 1"
        assert "error" in answer(source, {})
    assert (tmp_path / "open").read_text() == ""


def test_the_row_is_known_at_which_a_child_ends() -> None:
    source = "import os\ndef row(row):\n    if row['n'] == 3:\n        os._exit(1)\n    return True"
    answered: list[bytes] = []
    with function(source) as made, pytest.raises(Stopped):
        for line in made.call([b'{"n":%d}' % number for number in range(6)]):
            answered.append(line)
    assert len(answered) == 3


def test_large_rows_go_both_ways() -> None:
    text = "é" * 4_000_000
    with function("def row(row):\n    return True") as made:
        answers = [json.loads(line)["row"]["text"] for line in made.call([json.dumps({"text": text}).encode()] * 3)]
    assert answers == [text] * 3


def test_a_child_dies_with_its_parent() -> None:
    """And does not run on, alone, for ever."""
    program = (
        "from services.dataset.engines.sandbox import Limits, Sandbox\n"
        "made = Sandbox('def row(row):\\n    while True: pass', Limits(60, 2**28))\n"
        "print(made._child.pid, flush=True)\n"
        "list(made.call([b'{}']))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(timeout=10)


def test_sets_and_random_numbers_are_the_same_in_every_child() -> None:
    source = "import random\ndef row(row):\n    return {'a': [random.random(), hash('a'), *{'b', 'c', 'd'}]}"
    assert answer(source, {"n": 1}) == answer(source, {"n": 1}) != answer(source, {"n": 2})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        # prctl(2) takes no filter, as in a kernel without seccomp.
        ("child.seccomp.MODE_FILTER = 99", "prctl 22: Invalid argument"),
        # A filter that lets all through, as in an emulated kernel that ignores it.
        ("child.seccomp.DENY = child.seccomp.ALLOW", "seccomp has no effect here"),
        ("child.seccomp.platform.machine = lambda: 'pdp11'", "no list of system calls for pdp11"),
        ("import sys; sys.exit(1)", "its process ended with code 1"),
    ],
)
def test_nothing_runs_where_there_is_no_sandbox(change: str, says: str, changed_child: Change, tmp_path: Path) -> None:
    changed_child(change)
    ran = tmp_path / "ran"
    with pytest.raises(SandboxUnavailable, match=says):
        Sandbox(f"open({str(ran)!r}, 'w')\ndef row(row):\n    return True", LIMITS)
    assert not ran.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_has_the_sandbox_too() -> None:
    """With an interpreter that others may read, which ours need not be."""
    python = "/usr/bin/python3"
    if not Path(python).exists():
        pytest.skip(f"no {python}")
    source = "def row(row):\n    return open('/etc/passwd').read() != ''"
    lines = [json.dumps(one) for one in ({"modules": [], "memory": LIMITS.memory}, source, {})]
    with tempfile.TemporaryDirectory() as folder:
        # The checkout need not be readable for others either.
        Path(folder).chmod(0o755)
        child = _copied(CHILD, Path(folder))
        for module in ("libs/__init__.py", "libs/compute/__init__.py", "libs/compute/seccomp.py"):
            _copied(ROOT / module, Path(folder))
        done = subprocess.run(
            [python, "-s", "-S", str(child)],
            input="\n".join([*lines, ""]),
            env={"PYTHONPATH": folder},
            user=12345,
            group=12345,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    closed, loaded, answered = map(json.loads, done.stdout.splitlines())
    assert (closed, loaded) == ({"missing": ""}, {"error": ""})
    assert "PermissionError: [Errno 1]" in answered["error"]


def _copied(file: Path, root: Path) -> Path:
    """A copy of a file of the checkout, at the same place under another root, for everybody to read."""
    copy = root / file.relative_to(ROOT)
    copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    copy.write_bytes(file.read_bytes())
    copy.chmod(0o644)
    return copy
