"""Starting, looking at and stopping a whole mesh."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.local import certificates, logs, processes
from deploy.local.layout import Home, Ports, RunnerError, is_free
from deploy.local.processes import Identity
from deploy.local.supervisor import details, recorded
from deploy.local.topology import ROOT, Part, inherited, topology

Say = Callable[[str], None]

# A first start on two slow cores, with every database still to be made.
_PATIENCE = 120.0
# A supervisor that just died may have started a process that it had no time to record; `leader` finds it.
_SUPERVISOR = "supervisor"


@dataclass(frozen=True, slots=True)
class PartStatus:
    """One line of `argosy status`."""

    name: str
    # `ready`, `starting`, `down`.
    state: str
    detail: str
    pid: int | None
    restarts: int
    memory_bytes: int
    ports: tuple[int, ...]


def supervisor_of(home: Home) -> Identity | None:
    """The running supervisor of a data folder."""
    return recorded(home.records / f"{_SUPERVISOR}.json") or processes.leader(home.root, _SUPERVISOR)


def running(home: Home, part: Part) -> Identity | None:
    """The process of a part."""
    return recorded(_record(home, part)) or processes.leader(home.root, part.name)


def up(home: Home, ports: Ports, say: Say) -> float:
    """Starts what does not run yet and waits until every part is ready. What runs already is left as it is.

    Args:
        say: gets a line a part as it becomes ready.
    Returns:
        seconds until everything was ready.
    Raises:
        RunnerError: a port is taken, the folder is of a newer format, or a part does not come up.
    """
    began = time.monotonic()
    ports.check()
    home.prepare()
    kept = home.ports()
    if kept and kept != ports and supervisor_of(home):
        raise RunnerError(
            f"this mesh runs on ports {kept.base} and {kept.http}; `argosy down` stops it, then it can start on others"
        )
    certificates.renew(home)
    home.keep_ports(ports)
    parts = topology(home, ports)
    _refuse_taken_ports(home, parts)
    if not supervisor_of(home):
        _start_supervisor(home)
    _wait(home, parts, began, say)
    return time.monotonic() - began


def _refuse_taken_ports(home: Home, parts: Iterable[Part]) -> None:
    taken = []
    for part in parts:
        if running(home, part):
            continue
        for port in part.ports:
            if not is_free(port):
                taken.append(f"{port} ({part.name}) by {processes.listener(port) or 'another process'}")
    if taken:
        raise RunnerError(
            "these ports are taken: "
            + "; ".join(taken)
            + ". Stop what has them, or choose others with --port-base and --http-port"
        )


def _start_supervisor(home: Home) -> None:
    command = [sys.executable, "-m", "deploy.local.supervisor", "--home", str(home.root)]
    environment = {**inherited(), processes.MARKER: str(home.root), processes.PART: _SUPERVISOR}
    processes.spawn(command, environment, home.logs / f"{_SUPERVISOR}.log", ROOT)


def _wait(home: Home, parts: list[Part], began: float, say: Say) -> None:
    waiting = {part.name: part for part in parts}
    with ThreadPoolExecutor(max_workers=4) as pool:
        while waiting:
            answers = dict(
                zip(list(waiting), pool.map(lambda part: _answer(home, part), list(waiting.values())), strict=True)
            )
            for name, answer in answers.items():
                if not answer:
                    say(f"{name:<14} ready  {time.monotonic() - began:5.1f} s")
                    del waiting[name]
            if waiting and time.monotonic() - began > _PATIENCE:
                raise RunnerError(_why(home, waiting.values(), answers))
            if waiting:
                time.sleep(0.25)


def _answer(home: Home, part: Part) -> str:
    if not running(home, part):
        return "is not running"
    return _asked(home, part)


def _asked(home: Home, part: Part) -> str:
    if part.announces:
        offset = int(details(_record(home, part)).get("log_offset", 0))
        return "" if logs.says(home.logs / f"{part.name}.log", part.announces, offset) else "starting"
    return part.probe()


def _why(home: Home, parts: Iterable[Part], answers: dict[str, str]) -> str:
    lines = [f"not ready after {_PATIENCE:.0f} s:"]
    for part in parts:
        trouble = _trouble(home, part)
        lines.append(f"  {part.name}: {answers.get(part.name, '')}{'; ' + trouble if trouble else ''}")
        lines.extend(f"      {line[:300]}" for line in logs.tail(home.logs / f"{part.name}.log", 5))
    lines.append(
        f"The logs are in {home.logs}. `argosy doctor` looks at the machine, `argosy down` stops what was started."
    )
    return "\n".join(lines)


def _record(home: Home, part: Part) -> Path:
    return home.records / f"{part.name}.json"


def _trouble(home: Home, part: Part) -> str:
    return str(details(_record(home, part)).get("trouble", ""))


def status(home: Home) -> list[PartStatus]:
    """Every part as it is now; empty when this folder never held a mesh."""
    ports = home.ports()
    if ports is None:
        return []
    parts = topology(home, ports)
    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(lambda part: _status(home, part), parts))


def _status(home: Home, part: Part) -> PartStatus:
    identity = running(home, part)
    answer = _asked(home, part) if identity else _trouble(home, part)
    state = "down" if identity is None else "starting" if answer else "ready"
    return PartStatus(
        name=part.name,
        state=state,
        detail=answer,
        pid=identity.pid if identity else None,
        restarts=int(details(_record(home, part)).get("restarts", 0)),
        memory_bytes=_memory(identity) if identity else 0,
        ports=part.ports,
    )


def _memory(identity: Identity) -> int:
    """Resident bytes of a process and its descendants; a page that several share counts as a part for each, so that
    the parts of a mesh add up to what the machine gives (PSS of proc_pid_smaps(5)).
    """
    total = 0
    for member in processes.belonging_to([identity]):
        with suppress(OSError, IndexError):
            text = Path(f"/proc/{member.pid}/smaps_rollup").read_text()
            total += int(text.partition("\nPss:")[2].split()[0]) << 10
    return total


def down(home: Home, say: Say) -> int:
    """Stops everything that was started for a data folder, in order, and waits until it is gone.

    Services first, which finish the calls that they work on; then Ray with all its workers; then bus and database.

    Args:
        say: gets a line a group, and one for what had to be killed.
    Returns:
        how many processes were stopped.
    """
    began = time.monotonic()
    supervisor = supervisor_of(home)
    ports = home.ports()
    parts = topology(home, ports) if ports and home.secrets.exists() else []
    owners = {part.name: identity for part in parts if (identity := running(home, part))}
    everything = processes.belonging(home.root, owners.values())
    if supervisor:
        processes.end([supervisor], grace=5)
    stopped = len(everything | {supervisor} if supervisor else everything)
    for rank in sorted({part.rank for part in parts}, reverse=True):
        group = [part for part in parts if part.rank == rank and part.name in owners]
        if group:
            _stop(group, owners, say)
    left = {identity for identity in everything | processes.belonging(home.root, []) if identity.alive}
    if left:
        names = ", ".join(sorted({_label(identity) for identity in left}))
        killed = processes.end(left, grace=5)
        say(f"ended {len(left)} left behind ({names}){f', {len(killed)} by force' if killed else ''}")
    for record in home.records.glob("*.json"):
        record.unlink()
    say(
        f"everything is stopped: {stopped} processes, {time.monotonic() - began:.1f} s"
        if stopped
        else "nothing was running"
    )
    return stopped


def _stop(group: list[Part], owners: dict[str, Identity], say: Say) -> None:
    began = time.monotonic()
    members = [owners[part.name] for part in group]
    families = {part.name: processes.belonging_to([owners[part.name]]) for part in group}
    for part in group:
        # The processes of Ray each end by themselves; asked through their parent alone, they take three times as long.
        asked = families[part.name] if part.whole else {owners[part.name]}
        for identity in asked:
            processes.send(identity, part.stop)
    left = processes.wait_gone(members, max(part.grace for part in group))
    everybody = set().union(*families.values())
    # What outlives its parent must be gone before the next group is asked: it may still use it.
    left |= processes.wait_gone(everybody, 2)
    killed = processes.end(left, grace=0, first=signal.SIGKILL)
    force = f" ({len(killed)} by force)" if killed else ""
    say(f"stopped {', '.join(part.name for part in group)}  {time.monotonic() - began:.1f} s{force}")


def _label(identity: Identity) -> str:
    line = processes.command_line(identity.pid)
    return (line.split(" ")[0].rsplit("/", 1)[-1] or str(identity.pid))[:40]
