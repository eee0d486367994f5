"""What a training script may ask of Argosy. It is on the path of every script.

A script runs in a folder of its own: `data/train.parquet` and, if rows are held out, `data/heldout.parquet`,
`parameters.json`, its own code in `code/`, and three folders that it may write: `output/` for the model, `checkpoint/`
and `tmp/`.

    import argosy_run as run

    for step in range(run.resumed_step(), 100):
        ...
        run.log_metric(step, loss=loss)
        run.progress((step + 1) / 100)
        if step % 10 == 9:
            torch.save(state, run.CHECKPOINT / "state.pt")
            run.save_checkpoint(step + 1)
    safetensors.torch.save_model(model, run.OUTPUT / "model.safetensors")
"""

from __future__ import annotations

import json
import os
import threading
from functools import cache
from pathlib import Path
from typing import Any

DATA, OUTPUT, CHECKPOINT = Path("data"), Path("output"), Path("checkpoint")

_channel = int(os.environ.get("ARGOSY_RUN_CHANNEL", "-1"))
_lock = threading.Lock()


def parameters() -> dict[str, Any]:
    """The parameters of the training, defaults filled in."""
    return json.loads(Path("parameters.json").read_text(encoding="utf-8"))


def file(name: str, part: str = "") -> Path:
    """The file of a row, such as a picture, by the value in the row's `file_name`.

    Args:
        part: where the row is, `train` or `heldout`; needed for a name that both have for different files.
    """
    found = {names[name] for each, names in _files().items() if part in ("", each) and name in names}
    if len(found) > 1:
        raise ValueError(f"train and heldout have different files called {name!r}; say which part is meant")
    if not found:
        raise KeyError(name)
    return DATA / "files" / found.pop()


def seed() -> int:
    """The seed of the training."""
    return int(os.environ.get("ARGOSY_RUN_SEED", "0"))


def log_metric(step: int, **values: float) -> None:
    """Adds a point to the curves of the run: `log_metric(40, loss=0.31, accuracy=0.9)`. The last value of each name
    becomes a result of the run.
    """
    _say({"metrics": {name: float(value) for name, value in values.items()}, "step": int(step)})


def progress(fraction: float, message: str = "") -> None:
    """Says how far the work is.

    Args:
        fraction: 0 to 1.
        message: what it is doing now; empty keeps the last one.
    """
    _say({"progress": float(fraction), "message": str(message)})


def save_checkpoint(step: int) -> None:
    """Keeps the files in `checkpoint/` as they are now; an attempt that comes after this one finds them there. Returns
    when they are kept. A run that is to pause ends here.
    """
    with _lock:
        _write({"checkpoint": int(step)})
        if _channel >= 0:
            os.read(_channel, 1)


def resumed_step() -> int:
    """The step of the checkpoint that is in `checkpoint/`; 0: there is none."""
    return int(os.environ.get("ARGOSY_RUN_STEP", "0"))


@cache
def _files() -> dict[str, dict[str, str]]:
    return json.loads((DATA / "files.json").read_text(encoding="utf-8"))


def _say(message: dict[str, Any]) -> None:
    with _lock:
        _write(message)


def _write(message: dict[str, Any]) -> None:
    line = json.dumps(message).encode() + b"\n"
    if _channel < 0:
        print(line.decode(), end="")
    while line and _channel >= 0:
        line = line[os.write(_channel, line) :]
