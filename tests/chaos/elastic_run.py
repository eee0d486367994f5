"""python -m tests.chaos.elastic_run FOLDER ADDRESS: a run on a Ray cluster whose nodes come and go.

Prints what it reports as lines of JSON. It takes half a second a checkpoint longer than it needs, so that nodes have
the time to come and go.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray

from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from services.training.engines import launch, relay, train


class SlowRelay(relay.RelayState):
    """Behind every checkpoint the workers ask whether they are to stop."""

    def pausing(self) -> bool:
        time.sleep(0.5)
        return super().pausing()


class ToldContext(LocalContext):
    """Tells what happens."""

    def log(self, body: str, severity: str = "INFO") -> None:
        tell({"log": body})

    def metrics(self, phase: str, step: int, /, **values: float) -> None:
        tell({"step": step, "loss": values["loss"]})

    def checkpoint(self, data: dict[str, Any]) -> None:
        tell({"checkpoint": data.get("step", 0)})


def tell(report: dict[str, Any]) -> None:
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    ray.init(sys.argv[2], log_to_driver=False)
    relay.RelayState = SlowRelay
    launch._RESIZE_SECONDS = 1.0
    store = BlobStore(f"file://{folder}/blobs")
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    result = train.run(ToldContext(spec, blobs_write=store, blobs_read=store))
    tell({"result": result["manifest_digest"]})
