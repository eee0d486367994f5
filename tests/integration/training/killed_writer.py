"""python -m tests.integration.training.killed_writer FOLDER: a run that is killed while it writes its third
checkpoint."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from services.training.engines import train

FATAL = 3


class DyingStore(BlobStore):
    """Kills its process in the middle of a checkpoint: its weights are stored, its optimiser and manifest are not."""

    written = 0

    def put_sync(self, source: Any) -> Any:
        if isinstance(source, Path) and source.name == "optimiser.pt":
            self.written += 1
            if self.written == FATAL:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().put_sync(source)


class KeptContext(LocalContext):
    """Keeps the checkpoints that were reported, beyond its own death."""

    def checkpoint(self, data: dict[str, Any]) -> None:
        with (Path(sys.argv[1]) / "checkpoints.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(data) + "\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    store = DyingStore(f"file://{folder}/blobs")
    train.run(KeptContext(spec, blobs_write=store, blobs_read=store))
