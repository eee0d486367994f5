"""Prepared data: all that a worker needs, as blobs under one manifest; made once, read anywhere."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers import LlamaConfig

from libs.common.blobs import BlobStore
from services.training.domain.spec import Method, Phase, TrainingSpec
from services.training.engines.batches import AnswerRows, PackedRows
from services.training.engines.encode import Array, Examples
from services.training.engines.loop import PhaseData
from services.training.engines.turn_rows import TurnRows
from services.training.engines.worker import Job

Arrays = dict[str, Array]


def phase_arrays(sequences: Array | None, examples: Examples | None) -> Arrays:
    """The arrays of one set of rows, by name."""
    if sequences is not None:
        return {"sequences": sequences}
    assert examples is not None
    return {"tokens": examples.tokens, "starts": examples.starts, "answers": examples.answers}


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

    data = [
        PhaseData(
            _rows(phase, lambda name, part=f"{number}/train": array(f"{part}/{name}.npy")),
            _rows(phase, lambda name, part=f"{number}/heldout": array(f"{part}/{name}.npy"))
            if any(path.startswith(f"{number}/heldout/") for path in paths)
            else None,
        )
        for number, phase in enumerate(spec.phases)
    ]
    base = store.read_sync(paths["base.safetensors"]) if "base.safetensors" in paths else None
    return Job(spec, config, data, store, base)


def _rows(phase: Phase, array: Callable[[str], Array]) -> PackedRows | AnswerRows | TurnRows:
    if phase.method is Method.PRETRAIN:
        return PackedRows(array("sequences"))
    if phase.messages_column:
        return TurnRows(array("tokens"), array("starts"), array("counted"))
    return AnswerRows(Examples(array("tokens"), array("starts"), array("answers")))
