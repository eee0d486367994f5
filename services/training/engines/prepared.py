"""Prepared data: all that a worker needs, as blobs under one manifest; made once, read anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from libs.common.blobs import BlobStore
from libs.compute.scratch import scratch_folder
from services.training.domain.spec import Phase, TrainingSpec
from services.training.engines.base import BaseText, read_text
from services.training.engines.batches import Rows
from services.training.engines.checkpoints import Json
from services.training.engines.encode import Array
from services.training.engines.frozen import frozen_model
from services.training.engines.methods import learning_of
from services.training.engines.phase_rows import Arrays
from services.training.engines.worker import Job, PhaseData

# Where the files of a base model lie in prepared data.
BASE = "base"


class Preparation:
    """Collects prepared arrays and files and commits them."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._blobs: list[Json] = []

    def store_arrays(self, arrays: Arrays) -> list[Json]:
        """Stores arrays: the entries of their files."""
        return [self._stored(f"{name}.npy", array.npy()) for name, array in arrays.items()]

    def add_arrays(self, phase: int, part: str, entries: list[Json]) -> None:
        """Adds stored arrays of `part` (`train` or `heldout`) of a phase."""
        self._blobs += [{**entry, "path": f"{phase}/{part}/{entry['path']}"} for entry in entries]

    def add_folder(self, part: str, folder: Path) -> None:
        """Stores all files of a folder."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.add_file(f"{part}/{path.relative_to(folder).as_posix()}", path)

    def add_file(self, path: str, content: bytes | Path) -> None:
        """Stores bytes, or what is in a file."""
        self._blobs.append(self._stored(path, content))

    def _stored(self, path: str, content: bytes | Path | Iterable[bytes]) -> Json:
        blob = self._store.put_sync(content)
        return blob.entry(path)

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

    def rows(phase: Phase, part: str) -> Rows:
        return learning_of(phase).rows(lambda name: array(f"{part}/{name}.npy"))

    def frozen(number: int) -> nn.Module:
        with scratch_folder("argosy-frozen-") as folder:
            place = bring_part(store, digest, frozen_part(number), folder)
            assert place is not None
            return frozen_model(place)

    data = [
        PhaseData(
            rows(phase, f"{number}/train"),
            rows(phase, f"{number}/heldout") if any(path.startswith(f"{number}/heldout/") for path in paths) else None,
            partial(frozen, number),
        )
        for number, phase in enumerate(spec.phases)
    ]
    config, base = config_of(plan), bring_part(store, digest, BASE, folder)
    return Job(spec, config, data, store, text_of(store, digest, base, config), base, plan.get("base", ""))


def text_of(store: BlobStore, digest: str, base: Path | None, config: PreTrainedConfig) -> BaseText:
    """How the model of prepared data reads and writes: as its base, if it has one.

    Args:
        base: folder with the small files of the base, at least.
    """
    if base is not None:
        return read_text(base, config)
    paths = {entry["path"]: entry["sha256"] for entry in store.load_manifest_sync(digest)["blobs"]}
    return BaseText(Tokenizer.from_str(store.read_sync(paths["tokenizer.json"]).decode()))


def bring_part(store: BlobStore, digest: str, part: str, folder: Path, weights: bool = True) -> Path | None:
    """Writes a model of prepared data below a folder.

    Args:
        part: `BASE`, or what `frozen_part` gives.
        weights: whether its weights are wanted, or only its small files.

    Returns:
        Where it lies; None if there is none.
    """
    place = folder / part
    for entry in store.load_manifest_sync(digest)["blobs"]:
        path = PurePosixPath(str(entry["path"]))
        if path.is_relative_to(part) and (weights or path.suffix != ".safetensors"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            store.export_sync(str(entry["sha256"]), folder / path)
    return place if place.exists() else None


def frozen_part(number: int) -> str:
    """Where the files of the version that a phase asks are among the prepared ones."""
    return f"{number}/frozen"
