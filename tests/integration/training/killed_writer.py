"""python -m tests.integration.training.killed_writer FOLDER: a run that is killed while it writes its third
checkpoint."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from services.training.engines import train

FATAL = 3


class Dying:
    """Stands before `torch.save` and kills its process in the middle of a checkpoint: its weights are stored, of its
    optimiser there is a piece, of its manifest nothing."""

    def __init__(self) -> None:
        self._save = torch.save
        self._written = 0

    def __call__(self, obj: object, f: Any) -> None:
        self._written += 1
        if self._written == FATAL:
            f.write(b"PK")
            os.kill(os.getpid(), signal.SIGKILL)
        self._save(obj, f)


class KeptContext(LocalContext):
    """Keeps the checkpoints that were reported, beyond its own death."""

    def checkpoint(self, data: dict[str, Any]) -> None:
        with (Path(sys.argv[1]) / "checkpoints.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(data) + "\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    store = BlobStore(f"file://{folder}/blobs")
    with patch.object(torch, "save", Dying()):
        train.run(KeptContext(spec, blobs_write=store, blobs_read=store))
