"""Prepared data: all that a worker needs, as blobs under one manifest; made once, read anywhere."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from torch import nn
from transformers import LlamaConfig

from libs.common.blobs import BlobStore
from services.training.domain.spec import Phase, TrainingSpec
from services.training.engines.batches import Rows
from services.training.engines.encode import Array
from services.training.engines.frozen import frozen_model
from services.training.engines.methods import METHODS
from services.training.engines.methods.method import Arrays
from services.training.engines.turn_rows import TurnRows
from services.training.engines.worker import Job, PhaseData


class Preparation:
    """Collects prepared arrays and files and commits them."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._blobs: list[dict[str, object]] = []

    def add_arrays(self, phase: int, part: str, arrays: Arrays) -> None:
        """Stores arrays of `part` (`train` or `heldout`) of a phase."""
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            self.add_file(f"{phase}/{part}/{name}.npy", buffer.getvalue())

    def add_file(self, path: str, content: bytes) -> None:
        """Stores a file."""
        blob = self._store.put_sync(content)
        self._blobs.append({"path": path, "sha256": blob.sha256, "size": blob.size})

    def commit(self) -> str:
        """Digest of the manifest."""
        return self._store.commit_sync({"kind": "training.prepared", "blobs": self._blobs})


def load_job(store: BlobStore, digest: str, spec: TrainingSpec, config: LlamaConfig, folder: Path) -> Job:
    """Reads prepared data for one worker. Arrays are mapped from files, so that their size does not count as memory.

    Args:
        folder: for the files; must live as long as the job.
    """
    paths = {entry["path"]: entry["sha256"] for entry in store.load_manifest_sync(digest)["blobs"]}

    def array(path: str) -> Array:
        local = folder / path.replace("/", "_")
        store.export_sync(paths[path], local)
        mapped: Array = np.load(local, mmap_mode="r", allow_pickle=False)
        return mapped

    def rows(phase: Phase, part: str) -> Rows:
        if phase.messages_column:
            return TurnRows(*(array(f"{part}/{name}.npy") for name in ("tokens", "starts", "counted")))
        return METHODS[phase.method].rows(lambda name: array(f"{part}/{name}.npy"))

    def frozen(number: int) -> nn.Module:
        config, weights = (store.read_sync(paths[path]) for path in frozen_paths(number))
        return frozen_model(config, weights)

    data = [
        PhaseData(
            rows(phase, f"{number}/train"),
            rows(phase, f"{number}/heldout") if any(path.startswith(f"{number}/heldout/") for path in paths) else None,
            partial(frozen, number),
        )
        for number, phase in enumerate(spec.phases)
    ]
    base = store.read_sync(paths["base.safetensors"]) if "base.safetensors" in paths else None
    tokenizer = Tokenizer.from_str(store.read_sync(paths["tokenizer.json"]).decode())
    return Job(spec, config, data, store, tokenizer, base)


def frozen_paths(number: int) -> tuple[str, str]:
    """Where configuration and weights of the version that a phase asks are among the prepared files."""
    return f"{number}/frozen/config.json", f"{number}/frozen/model.safetensors"
