"""What strangers' models bring, tried in a limited child: what it does, it does to that child."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

from services.training.domain.model_files import BadModel

# What a template of a page takes is thousandths of a second, what a vocabulary of 250,000 takes one or two.
CPU_SECONDS = 20
# More than the processor time, because other processes want the processor.
WALL_SECONDS = 60.0
# So many times as long may it take to make a model.
_MODEL_TIMES = 3
_MOST_ANSWER = 10_000


def require_tokenizer(path: str, text: str) -> None:
    """Raises BadModel for a tokenizer.json that cannot be loaded within the limits."""
    if fault := _fault("tokenizer", text):
        raise BadModel(f"{path}: {fault}")


def require_template(name: str, text: str) -> None:
    """Raises BadModel that names the template, where it cannot be rendered within the limits and the sandbox."""
    if fault := _fault("template", text):
        raise BadModel(f"{name}: {fault}")


def require_fit(config: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    """Raises BadModel for a config.json of a language model that its weights do not fit.

    Args:
        shapes: of all tensors, by name.
    """
    # The libraries of models alone take some seconds to load.
    if not config.get("architectures"):
        return
    if fault := _fault("fit", json.dumps({"config": config, "shapes": shapes}), _MODEL_TIMES):
        raise BadModel(f"the model: {fault}")


def _fault(kind: str, text: str, times: int = 1) -> str:
    """What is wrong with it; empty: nothing."""
    # Nothing of the parent's environment: it may hold secrets.
    environment = {
        "PATH": os.defpath,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TOKENIZERS_PARALLELISM": "false",
        "RAYON_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "services.training.engines.model_child"],
            input=json.dumps({"kind": kind, "text": text, "cpu_seconds": times * CPU_SECONDS}).encode(),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=times * WALL_SECONDS,
            close_fds=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it does not end within {times * WALL_SECONDS:g} s"
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return "it does not end within the processor time that it may have"
    try:
        answer = json.loads(done.stdout[:_MOST_ANSWER])
        return str(answer["error"])
    except (ValueError, KeyError, TypeError):
        return "reading it ended the process that read it"
