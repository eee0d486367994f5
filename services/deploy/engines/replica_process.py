"""A replica without Ray: `python -m services.deploy.engines.replica_process < spec.json`.

Prints its status as a JSON line whenever that changes, and stops in order when its standard input ends.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from services.deploy.engines.replica import VllmReplica

_LOOK_SECONDS = 0.1
_OVER = ("FAILED", "STOPPED")


def main() -> None:
    """Serves the spec of the first line until the input ends."""
    replica = VllmReplica(**json.loads(sys.stdin.readline()))
    ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    shown: dict[str, Any] = {}
    while not ended.wait(_LOOK_SECONDS) and shown.get("state") not in _OVER:
        shown = _show(replica, shown)
    replica.stop()
    _show(replica, shown)


def _show(replica: VllmReplica, shown: dict[str, Any]) -> dict[str, Any]:
    status = {name: value for name, value in replica.status().items() if name != "load"}
    if status != shown:
        # Its log goes to standard output, too; a status is recognised by its key.
        sys.stdout.write(json.dumps({"replica": status}) + "\n")
        sys.stdout.flush()
    return status


if __name__ == "__main__":
    main()
