"""Attacks from inside a script: each fails in the sandbox, and works where the protection that stops it is off."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from libs.compute import script_sandbox
from libs.compute.script_calls import CALLS
from libs.compute.script_sandbox import (
    CHILD,
    CODE,
    ScriptLimits,
    ScriptSandboxUnavailable,
    run_script,
)
from tests.integration.training.scripts import LIMITS, Heard, failure, left, run, run_folder

# The child as it is, but for what `change` does before it begins.
PATCHED = """
import importlib.util
spec = importlib.util.spec_from_file_location("child", {child!r})
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
{change}
child.main()
"""
NO_FILTER = "child.filter_calls = lambda libc: None; child._prove = lambda: None; child.confine.leave_network = bool"
NO_LANDLOCK = "child.open_files = lambda *_: None; child._prove = lambda: None"

Change = Callable[[str], None]


@pytest.fixture
def changed_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Change:
    """Starts children in which `change` was done before they close themselves in."""

    def use(change: str) -> None:
        file = tmp_path / "child.py"
        file.write_text(PATCHED.format(child=str(CHILD), change=change))
        monkeypatch.setattr(script_sandbox, "CHILD", file)

    return use


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a script runs."""
    return run_folder(tmp_path)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A file of somebody else's, a folder, two ports and a local socket that answer, a process to be hurt and a place
    in its memory."""
    secret = tmp_path / "tenant" / "secret"
    secret.parent.mkdir()
    secret.write_text("secret")
    local = socket.socket(socket.AF_UNIX)
    local.bind(str(tmp_path / "tenant" / "socket"))
    local.listen()
    memory = ctypes.create_string_buffer(b"secret")
    # Where Yama is, a process may look into its children only, unless this says otherwise (PR_SET_PTRACER of prctl(2)).
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    with local, datagrams, socket.create_server(("127.0.0.1", 0)) as server:
        yield {
            "file": str(secret),
            "port": server.getsockname()[1],
            "udp": datagrams.getsockname()[1],
            "socket": str(tmp_path / "tenant" / "socket"),
            "parent": os.getpid(),
            "address": ctypes.addressof(memory),
        }


# Each ends well where it works. The number is how it is stopped: 1 by the filter, 13 by Landlock.
ATTACKS = {
    "fork": (1, "import os\nif not os.fork():\n    os._exit(0)"),
    "start a program": (1, "import subprocess\nsubprocess.run(['/bin/true'], check=True)"),
    "become a program": (1, "import os\nos.execv('/bin/true', ['true'])"),
    "connect": (1, "import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"),
    "send a datagram": (
        1,
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {udp}))",
    ),
    "connect to a local socket": (1, "import socket\nsocket.socket(socket.AF_UNIX).connect({socket!r})"),
    "listen": (1, "import socket\nsocket.create_server(('127.0.0.1', 0))"),
    "signal the parent": (1, "import os, signal\nos.kill({parent}, signal.SIGURG)"),
    "change a limit": (
        1,
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.setrlimit(4, (ctypes.c_ulong * 2)(0, 0)):\n    raise OSError(ctypes.get_errno(), 'setrlimit')",
    ),
    "outlive the parent": (
        1,
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.prctl(1, 0, 0, 0, 0):\n    raise OSError(ctypes.get_errno(), 'prctl')",
    ),
    "trace the parent": (
        1,
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.ptrace(0, 0, 0, 0):\n    raise OSError(ctypes.get_errno(), 'ptrace')",
    ),
    "hide memory": (1, "import os\nos.memfd_create('x')"),
    "answer at a local socket without a file": (1, "import socket\nsocket.socket(socket.AF_UNIX).bind('\\0argosy')"),
    "a thread with descriptors of its own, which nobody counts": (
        1,
        # Where the kernel is asked, it says that such a thread lacks CLONE_SIGHAND (22).
        "import ctypes, os, platform\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.syscall(220 if platform.machine() == 'aarch64' else 56, 0x10300, 0, 0, 0, 0)\n"
        "if ctypes.get_errno() != 22:\n    raise OSError(ctypes.get_errno(), 'clone')",
    ),
    "have signals sent": (1, "import fcntl, os\nfcntl.fcntl(1, fcntl.F_SETOWN, os.getpid())"),
    "a hard link": (1, "import os\nopen('tmp/a', 'w').close()\nos.link('tmp/a', 'tmp/b')"),
    "a symbolic link": (1, "import os\nos.symlink('/etc/passwd', 'output/model.json')"),
    "empty a file that it may read": (
        1,
        "import os\nos.close(os.open('parameters.json', os.O_RDONLY | os.O_TRUNC))",
    ),
    "empty a file of another": (1, "import os\nos.close(os.open({file!r}, 3 | os.O_TRUNC))"),
    "open a file of another for nothing": (1, "import os\nos.close(os.open({file!r}, 3))"),
    "a file larger than the limit": (
        1,
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nfile = os.open('tmp/x', os.O_CREAT | os.O_RDWR)\n"
        "if libc.fallocate(file, 1, ctypes.c_long(0), ctypes.c_long(65 * 2**20)):\n"
        "    raise OSError(ctypes.get_errno(), 'fallocate')\nos.close(file)\nos.remove('tmp/x')",
    ),
    "take more processors": (1, "import os\nos.sched_setaffinity(0, os.sched_getaffinity(0))"),
    "read the passwords": (13, "open('/etc/passwd').read()"),
    "read a file of another": (13, "open({file!r}).read()"),
    "write a file of another": (13, "open({file!r}, 'a').write('x')"),
    "list a folder of another": (13, "import os\nos.listdir(os.path.dirname({file!r}))"),
    "remove a file of another": (13, "import os\nos.remove({file!r})"),
    "read what another process was told": (13, "open('/proc/{parent}/environ').read()"),
    "read the memory of another process": (
        13,
        "with open('/proc/{parent}/mem', 'rb', 0) as file:\n    file.seek({address})\n"
        "    assert file.read(6) == b'secret'",
    ),
    "remove the folder of its output": (13, "import os\nos.rmdir('output')"),
    "shared memory": (13, "open('/dev/shm/argosy-test', 'w')\nimport os\nos.remove('/dev/shm/argosy-test')"),
    "write beside its folders": (13, "open('beside', 'w')"),
    "change its own code": (13, "open('code/main.py', 'a').write('x')"),
    "a pipe as a file": (1, "import os\nos.mkfifo('tmp/pipe')"),
}
# What Landlock before Linux 6.2 leaves to the filter.
OLDER_LANDLOCK = "child.landlock._GOVERNED = {1: (1 << 13) - 1}"
# Behind the first wall there is a second one here.
ALSO_OFF = {
    "start a program": NO_LANDLOCK,
    "become a program": NO_LANDLOCK,
    "a symbolic link": NO_LANDLOCK,
    "a pipe as a file": NO_LANDLOCK,
    "empty a file that it may read": OLDER_LANDLOCK,
    "empty a file of another": OLDER_LANDLOCK,
    "read what another process was told": "child.drop_capabilities = lambda libc: None",
    "read the memory of another process": "child.drop_capabilities = lambda libc: None",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_fails_in_the_sandbox(attack: str, folder: Path, target: dict[str, Any]) -> None:
    (folder / "parameters.json").write_text("{}")
    number, source = ATTACKS[attack]
    assert f"[Errno {number}]" in failure(folder, source.format(**target))
    assert Path(target["file"]).read_text() == "secret"


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_works_where_that_protection_is_off(
    attack: str, folder: Path, target: dict[str, Any], changed_child: Change
) -> None:
    (folder / "parameters.json").write_text("{}")
    number, source = ATTACKS[attack]
    off = {1: NO_FILTER, 13: NO_LANDLOCK}[number]
    changed_child(f"{off}; {ALSO_OFF.get(attack, 'pass')}")
    before = signal.signal(signal.SIGURG, signal.SIG_IGN)
    run(folder, source.format(**target))
    signal.signal(signal.SIGURG, before)


def test_an_older_landlock_will_do(folder: Path, target: dict[str, Any], changed_child: Change) -> None:
    (folder / "parameters.json").write_text("{}")
    changed_child(OLDER_LANDLOCK)
    assert "[Errno 1]" in failure(folder, ATTACKS["empty a file that it may read"][1])
    assert "[Errno 1]" in failure(folder, ATTACKS["empty a file of another"][1].format(**target))
    assert Path(target["file"]).read_text() == "secret"
    assert "[Errno 13]" in failure(folder, "open('/etc/passwd')")


EVERY_CALL = """
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
allowed = set(json.load(open("parameters.json")))
def refused(number):
    return libc.syscall(number, *[ctypes.c_long(-1)] * 6) == -1 and ctypes.get_errno() == 1
others = [number for number in range(600) if number not in allowed and not refused(number)]
assert not others, others
"""


def test_every_other_system_call_is_refused(folder: Path) -> None:
    """Asked of the kernel itself, by native code."""
    # Linux lets its own trampolines of probes past seccomp: uretprobe and uprobe of x86_64.
    trampolines = [335, 336] if platform.machine() == "x86_64" else []
    (folder / "parameters.json").write_text(str([*CALLS[platform.machine()].values(), *trampolines]))
    run(folder, EVERY_CALL)


def test_memory_is_there_without_the_limit(folder: Path, changed_child: Change) -> None:
    """It is allocated and not used: the limit of the parent, on what is used, does not see it."""
    changed_child("child.limit_resources = lambda *_: None")
    run(folder, "import mmap\nmmap.mmap(-1, 10**9, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)")


@pytest.mark.parametrize("limited", [True, False])
def test_it_has_as_many_processors_as_threads(limited: bool, folder: Path, changed_child: Change) -> None:
    changed_child("pass" if limited else "child.limit_processors = lambda *_: None")
    all_here = len(os.sched_getaffinity(0))
    for threads in (1, 2):
        limits = ScriptLimits(LIMITS.seconds, LIMITS.memory, LIMITS.disk, threads)
        heard = run(folder, "import os\nprint(len(os.sched_getaffinity(0)))", limits)
        assert heard.lines == [str(min(threads, all_here) if limited else all_here)]


def test_what_it_prints_and_says_is_heard(folder: Path) -> None:
    source = (
        "import argosy_run as run, sys\nprint('one')\nprint('two', file=sys.stderr)\nprint('x' * 10_000)\n"
        "run.log_metric(3, loss=0.5)\nrun.progress(0.25, 'half of half')\nrun.save_checkpoint(4)\n"
        "print(run.seed(), run.resumed_step(), sys.stdin.read() == '')"
    )
    heard = run(folder, source)
    assert [line for line in heard.lines if "x" not in line and line] == ["one", "two", "7 0 True"]
    assert max(map(len, heard.lines)) <= 4_000
    assert heard.messages == [
        {"metrics": {"loss": 0.5}, "step": 3},
        {"progress": 0.25, "message": "half of half"},
        {"checkpoint": 4},
    ]


def test_nothing_of_a_script_is_imported_before_it_is_closed_in(folder: Path, changed_child: Change) -> None:
    (folder / CODE / "mine.py").write_text("print('mine')")
    assert run(folder, "import mine").lines == ["mine"]
    changed_child("child.limit_processors = lambda _: __import__('mine')")
    with pytest.raises(ScriptSandboxUnavailable):
        run(folder, "pass")


def test_the_environment_has_nothing_of_ours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_SECRET", "secret")
    heard = run(folder, "import os\nfor name in sorted(os.environ):\n    print(name)")
    ours = {"USER", "HOME", "TMPDIR", "LANG", "PYTHONHASHSEED", "PYTHONUNBUFFERED", "JOBLIB_MULTIPROCESSING"}
    assert {line for line in heard.lines if not line.endswith("_NUM_THREADS")} - ours == {
        "ARGOSY_RUN_CHANNEL",
        "ARGOSY_RUN_SEED",
        "ARGOSY_RUN_STEP",
    }


def test_no_descriptor_is_inherited(folder: Path, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        assert "[Errno 9]" in failure(folder, f"import os\nos.write({file.fileno()}, b'x')")
    assert (tmp_path / "open").read_text() == ""


def test_modes_of_files_are_left_out(folder: Path) -> None:
    """So that copies of files work, which ask for the mode of what they copy."""
    run(
        folder,
        "import shutil\nopen('tmp/a', 'w').close()\nshutil.copy('tmp/a', 'tmp/b')\nshutil.move('tmp/b', 'output/b')",
    )
    assert (folder / "output" / "b").exists()


def test_a_listener_that_raises_ends_it(folder: Path) -> None:
    class Impatient(Heard):
        def line(self, text: str) -> None:
            raise InterruptedError(text)

    (folder / CODE / "main.py").write_text("import time\nprint('now')\ntime.sleep(60)")
    with pytest.raises(InterruptedError, match="now"):
        run_script(folder, "main.py", LIMITS, 7, 0, Impatient())
    assert not left()


def test_nothing_changes_while_a_checkpoint_is_kept(folder: Path) -> None:
    class Keeping(Heard):
        def message(self, message: dict[str, Any]) -> None:
            first = (folder / "checkpoint" / "count").read_text()
            time.sleep(0.1)
            self.lines.append(f"{left()[0].status()} {first == (folder / 'checkpoint' / 'count').read_text()}")

    source = (
        "import argosy_run as run, threading, itertools\ndef work():\n    for number in itertools.count():\n"
        "        (run.CHECKPOINT / 'count').write_text(str(number))\n"
        "threading.Thread(target=work, daemon=True).start()\nimport time\ntime.sleep(0.1)\nrun.save_checkpoint(1)"
    )
    (folder / CODE / "main.py").write_text(source)
    heard = Keeping()
    run_script(folder, "main.py", LIMITS, 7, 0, heard)
    assert heard.lines == ["stopped True"]


def test_all_threads_stand_still_before_a_checkpoint_is_kept(folder: Path) -> None:
    class Looking(Heard):
        pid = ""

        def message(self, message: dict[str, Any]) -> None:
            self.pid = message.get("message", self.pid)
            if "checkpoint" in message:
                tasks = [task.read_text() for task in Path(f"/proc/{self.pid}/task").glob("*/stat")]
                self.lines += [task.rpartition(")")[2].split()[0] for task in tasks]

    source = (
        "import argosy_run as run, os, threading\ndef work():\n    while True:\n        pass\n"
        "threading.stack_size(2**18)\nfor _ in range(20):\n    threading.Thread(target=work, daemon=True).start()\n"
        "run.progress(0, str(os.getpid()))\nfor step in range(5):\n    run.save_checkpoint(step)"
    )
    (folder / CODE / "main.py").write_text(source)
    heard = Looking()
    run_script(folder, "main.py", LIMITS, 7, 0, heard)
    assert len(heard.lines) > 100
    assert set(heard.lines) == {"T"}


def test_it_dies_with_its_parent(folder: Path) -> None:
    (folder / CODE / "main.py").write_text("import os\nprint(os.getpid(), flush=True)\nwhile True:\n    pass")
    program = (
        "import sys\nfrom pathlib import Path\nfrom libs.compute.script_sandbox import ScriptLimits, run_script\n"
        "class Listener:\n    def line(self, text):\n        print(text, flush=True)\n"
        "    def used(self, usage):\n        pass\n"
        "run_script(Path(sys.argv[1]), 'main.py', ScriptLimits(60, 2**30, 2**20, 1), 0, 0, Listener())"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(timeout=10)


def test_it_does_not_begin_without_its_parent(folder: Path, changed_child: Change, tmp_path: Path) -> None:
    """Which was killed before the kernel was asked to end it too."""
    told = tmp_path / "told"
    changed_child(
        "import os, pathlib, time\nchild.limit_processors = lambda _: ("
        f"pathlib.Path({os.fspath(told)!r}).write_text(str(os.getpid())), time.sleep(0.5))"
    )
    (folder / CODE / "main.py").write_text("import time\nopen('output/ran', 'w').close()\ntime.sleep(30)")
    program = (
        "import sys\nfrom pathlib import Path\nfrom libs.compute import script_sandbox as here\n"
        "here.CHILD = Path(sys.argv[2])\n"
        "here.run_script(Path(sys.argv[1]), 'main.py', here.ScriptLimits(60, 2**30, 2**20, 1), 0, 0, None)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(folder), str(script_sandbox.CHILD)])
    while not told.exists() or not told.read_text():
        time.sleep(0.01)
    child = psutil.Process(int(told.read_text()))
    parent.kill()
    parent.wait()
    child.wait(timeout=10)
    assert not (folder / "output" / "ran").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        # prctl(2) takes no filter, as in a kernel without seccomp.
        ("child.seccomp.MODE_FILTER = 99", "prctl 22: Invalid argument"),
        # A filter that lets all through, as in an emulated kernel that ignores it.
        ("child.seccomp.DENY = child.seccomp.ALLOW", "seccomp has no effect here"),
        ("child.seccomp.platform.machine = lambda: 'pdp11'", "no list of system calls for pdp11"),
        ("child.landlock._CREATE_RULESET = 9999", "the kernel has no Landlock"),
        ("child.open_files = lambda *_: None", "Landlock has no effect here"),
        ("import sys; sys.exit(1)", "its process ended with code 1"),
    ],
)
def test_nothing_runs_where_there_is_no_sandbox(change: str, says: str, changed_child: Change, folder: Path) -> None:
    changed_child(change)
    with pytest.raises(ScriptSandboxUnavailable, match=says):
        run(folder, "open('output/ran', 'w')")
    assert not list((folder / "output").iterdir())
