"""Keeps the processes of a mesh running: `python -m deploy.local.supervisor --home FOLDER`.

It owns nothing that a process needs to live: each has a session of its own and writes its own log file. Killing the
supervisor harms nothing, and the next one adopts what runs, by pid and start time. Stopping the mesh is not its work
either (see mesh.py); on SIGTERM it only leaves.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from deploy.local import certificates, logs, processes
from deploy.local.layout import Home, Ports, write_atomically
from deploy.local.processes import Identity
from deploy.local.topology import Part, nothing, topology

log = logging.getLogger("supervisor")

# While parts start, and when all run.
_TICK, _QUIET_TICK = 0.25, 0.5
# Seconds between two looks at sizes of logs and ages of certificates.
_HOUSEKEEPING = 30.0
# Seconds between two looks at whether a part that runs is broken.
_LOOK = 5.0
# Waiting times before a restart, doubled each time; a part that lived for _HEALTHY seconds starts over with the
# shortest.
_FIRST_WAIT, _LONGEST_WAIT, _HEALTHY = 0.2, 10.0, 20.0


@dataclass
class Child:
    """One part and what became of it."""

    part: Part
    record: Path
    identity: Identity | None = None
    restarts: int = 0
    wait: float = _FIRST_WAIT
    started: float = 0.0
    due: float = 0.0
    # A part that fails while it is being prepared says here why, for `argosy status`.
    trouble: str = ""
    # Where the log stood when it was started: what is behind it, this process wrote.
    log_offset: int = 0
    # Whether parts that come after this one may start.
    settled: bool = False
    # When it was asked last whether it is broken.
    looked: float = 0.0

    def write(self) -> None:
        known = {"pid": self.identity.pid, "start": self.identity.start} if self.identity else {}
        data = {
            "part": self.part.name,
            "restarts": self.restarts,
            "trouble": self.trouble,
            "log_offset": self.log_offset,
        }
        write_atomically(self.record, json.dumps({**data, **known}) + "\n")


def details(record: Path) -> dict[str, Any]:
    """What a record says; empty: there is none."""
    try:
        return dict(json.loads(record.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def recorded(record: Path) -> Identity | None:
    """The process that a record names, if that very process still runs."""
    data = details(record)
    if "pid" not in data:
        return None
    identity = Identity(int(data["pid"]), int(data["start"]))
    return identity if identity.alive else None


class Supervisor:
    """Starts, adopts and restarts the parts of one mesh.

    Args:
        home: data folder.
        parts: in the order in which they start.
    """

    def __init__(self, home: Home, parts: list[Part]) -> None:
        self._home = home
        self._children = [Child(part, home.records / f"{part.name}.json") for part in parts]
        self._leaving = False
        self._kept = 0.0

    def leave(self, *_: object) -> None:
        """Asks `run` to return. The processes go on."""
        self._leaving = True

    def run(self) -> None:
        """Works until it is asked to leave."""
        for child in self._children:
            self._adopt(child)
        while not self._leaving:
            now = time.monotonic()
            for child in self._children:
                self._look_after(child, now)
            if now - self._kept >= _HOUSEKEEPING:
                self._kept = now
                self._keep_house()
            processes.reap()
            time.sleep(_QUIET_TICK if all(child.settled for child in self._children) else _TICK)

    def _adopt(self, child: Child) -> None:
        child.identity = recorded(child.record) or processes.leader(self._home.root, child.part.name)
        if child.identity:
            child.started = time.monotonic()
            data = details(child.record)
            child.restarts, child.log_offset = int(data.get("restarts", 0)), int(data.get("log_offset", 0))
            log.info("adopted %s (pid %d)", child.part.name, child.identity.pid)
            child.write()

    def _look_after(self, child: Child, now: float) -> None:
        if child.identity:
            if child.identity.alive:
                self._settle(child)
                self._mend(child, child.identity, now)
                return
            log.warning("%s (pid %d) is gone", child.part.name, child.identity.pid)
            if now - child.started >= _HEALTHY:
                child.wait = _FIRST_WAIT
            child.identity, child.due, child.restarts = None, now + child.wait, child.restarts + 1
            child.wait = min(child.wait * 2, _LONGEST_WAIT)
            child.write()
        if now >= child.due and self._may_start(child.part):
            self._start(child, now)

    def _may_start(self, part: Part) -> bool:
        return all(child.settled for child in self._children if child.part.name in part.after)

    def _settle(self, child: Child) -> None:
        """Once a part answers, does what those that come after it rely on, such as making their databases."""
        if child.settled:
            return
        if child.part.settle is nothing:
            child.settled = True
            return
        if child.part.probe():
            return
        try:
            child.part.settle()
        except Exception as error:
            log.exception("%s cannot be settled", child.part.name)
            child.trouble = f"{type(error).__name__}: {error}"
        else:
            child.settled, child.trouble = True, ""
        child.write()

    def _mend(self, child: Child, identity: Identity, now: float) -> None:
        """Ends a part that only a new start mends; that comes with the next look."""
        if now - max(child.looked, child.started) < _LOOK:
            return
        child.looked = now
        if why := child.part.broken():
            log.warning("%s (pid %d) is started again: %s", child.part.name, identity.pid, why)
            os.kill(identity.pid, child.part.stop)

    def _start(self, child: Child, now: float) -> None:
        part = child.part
        try:
            part.prepare()
            environment = {**part.environment, processes.MARKER: str(self._home.root), processes.PART: part.name}
            path = self._home.logs / f"{part.name}.log"
            child.log_offset = path.stat().st_size if path.exists() else 0
            child.identity = processes.spawn(part.command, environment, path, part.folder)
            child.trouble = ""
            log.info("started %s (pid %d)", part.name, child.identity.pid)
        except Exception as error:
            # Whatever keeps one part from starting must not take the others down; it is shown and tried again.
            log.exception("%s cannot start", part.name)
            child.trouble = f"{type(error).__name__}: {error}"
            child.due = now + child.wait
            child.wait = min(child.wait * 2, _LONGEST_WAIT)
        child.started = now
        child.write()

    def _keep_house(self) -> None:
        for path in self._home.logs.glob("*.log"):
            logs.rotate(path)
        renewed = certificates.renew(self._home)
        if renewed:
            log.info("renewed the certificates of %s", ", ".join(renewed))


def held(home: Home) -> IO[str] | None:
    """The lock that one supervisor of a data folder holds as long as it lives; None: another one has it."""
    file = (home.run / "supervisor.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--home", type=Path, required=True)
    home = Home.of(parser.parse_args().home)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    lock = held(home)
    if lock is None:
        log.info("another supervisor looks after %s", home.root)
        return
    own = processes.identify(os.getpid())
    if own:
        write_atomically(home.records / "supervisor.json", json.dumps({"pid": own.pid, "start": own.start}) + "\n")
    # Workers of Ray whose parent is gone come here instead of to an init that may not take them off the table.
    processes.adopt_orphans()
    supervisor = Supervisor(home, topology(home, home.ports() or Ports()))
    signal.signal(signal.SIGTERM, supervisor.leave)
    signal.signal(signal.SIGINT, supervisor.leave)
    supervisor.run()


if __name__ == "__main__":
    main()
