"""Prepared data: all that a worker needs, as blobs under one manifest; made once, read anywhere."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
from transformers import AutoConfig, PreTrainedConfig

from libs.common.blobs import BlobStore
from services.training.domain.spec import Method, Phase, TrainingSpec
from services.training.engines.batches import AnswerRows, PackedRows
from services.training.engines.checkpoints import Json
from services.training.engines.encode import Array, Examples
from services.training.engines.loop import PhaseData
from services.training.engines.turn_rows import TurnRows
from services.training.engines.worker import Job

Arrays = dict[str, Array]

# Where the files of a base model lie in prepared data.
BASE = "base"


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

    def add_file(self, path: str, content: bytes | Path) -> None:
        """Stores bytes, or what is in a file."""
        blob = self._store.put_sync(content)
        self._blobs.append({"path": path, "sha256": blob.sha256, "size": blob.size})

    def commit(self) -> str:
        """Digest of the manifest."""
        return self._store.commit_sync({"kind": "training.prepared", "blobs": self._blobs})


def config_of(plan: Json) -> PreTrainedConfig:
    """The configuration of the model that a plan is for."""
    return AutoConfig.for_model(**plan["config"])


def load_job(store: BlobStore, plan: Json, spec: TrainingSpec, folder: Path) -> Job:
    """Reads prepared data for one worker. Arrays are mapped from files, so that their size does not count as memory.

    Args:
        plan: see `train.prepare`.
        folder: for the files; must live as long as the job.
    """
    digest = plan["prepared"]
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
    base = bring_base(store, digest, folder)
    return Job(spec, config_of(plan), data, store, base, plan.get("base", ""))


def bring_base(store: BlobStore, digest: str, folder: Path, weights: bool = True) -> Path | None:
    """Writes the base model of prepared data below a folder.

    Args:
        weights: whether its weights are wanted, or only its small files.

    Returns:
        Where it lies; None if the run starts from nothing.
    """
    base = folder / BASE
    for entry in store.load_manifest_sync(digest)["blobs"]:
        path = PurePosixPath(str(entry["path"]))
        if path.parts[0] == BASE and (weights or path.suffix != ".safetensors"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            store.export_sync(str(entry["sha256"]), folder / path)
    return base if base.exists() else None


def _rows(phase: Phase, array: Callable[[str], Array]) -> PackedRows | AnswerRows | TurnRows:
    if phase.method is Method.PRETRAIN:
        return PackedRows(array("sequences"))
    if phase.messages_column:
        return TurnRows(array("tokens"), array("starts"), array("counted"))
    return AnswerRows(Examples(array("tokens"), array("starts"), array("answers")))
