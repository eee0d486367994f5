"""Tokenizers and chat templates of strangers, tried in a limited child: what they do, they do to that child."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from services.training.domain.model_files import BadModel

# What a template of a page takes is thousandths of a second, what a vocabulary of 250,000 takes one or two.
CPU_SECONDS = 20
# More than the processor time, because other processes want the processor.
WALL_SECONDS = 60.0
_MOST_ANSWER = 10_000


def require_tokenizer(path: str, text: str) -> None:
    """Raises BadModel for a tokenizer.json that cannot be loaded within the limits."""
    _ask("tokenizer", path, text)


def require_template(name: str, text: str) -> None:
    """Raises BadModel that names the template, where it cannot be rendered within the limits and the sandbox."""
    _ask("template", name, text)


def _ask(kind: str, name: str, text: str) -> None:
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
            input=json.dumps({"kind": kind, "text": text, "cpu_seconds": CPU_SECONDS}).encode(),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WALL_SECONDS,
            close_fds=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BadModel(f"{name}: it does not end within {WALL_SECONDS:g} s") from None
    if fault := _fault(done):
        raise BadModel(f"{name}: {fault}")


def _fault(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return "it does not end within the processor time that it may have"
    try:
        answer = json.loads(done.stdout[:_MOST_ANSWER])
        return str(answer["error"])
    except (ValueError, KeyError, TypeError):
        return "reading it ended the process that read it"
