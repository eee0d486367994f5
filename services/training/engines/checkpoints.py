"""Checkpoints: trained weights, optimiser and random state under one manifest, written by the leading worker."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from libs.common.blobs import BlobStore
from services.training.engines.model import trained_weights

Json = dict[str, Any]


@dataclass
class Progress:
    """Where a run stands: with the seed, phase and step are the whole cursor of the data.

    Attributes:
        phase: number of the current phase.
        step: steps done in it.
        tokens: read so far, all workers, padding not counted.
        cpu_seconds: used so far by all workers.
        train_seconds: spent in steps so far.
        results: figures so far, by name.
    """

    phase: int = 0
    step: int = 0
    tokens: int = 0
    cpu_seconds: float = 0.0
    train_seconds: float = 0.0
    results: dict[str, float] = field(default_factory=dict)


def write_checkpoint(
    store: BlobStore,
    model: nn.Module,
    optimiser: torch.optim.Optimizer | None,
    progress: Progress,
    phase: str,
    kept: str = "",
) -> Json:
    """Writes and commits a checkpoint. Weights that are frozen are not in it: the base has them.

    Args:
        optimiser: None between two phases, as each has its own.
        kept: blob with what the phase keeps of its beginning; see `write_kept`.

    Returns:
        What to keep as the task's checkpoint: `manifest_digest`, `phase`, `step` (of that phase) and `progress`.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in trained_weights(model).items()}
    files = {"model.safetensors": save_safetensors(tensors)}
    if optimiser is not None:
        buffer = io.BytesIO()
        torch.save({"optimiser": optimiser.state_dict(), "random": torch.get_rng_state()}, buffer)
        files["optimiser.pt"] = buffer.getvalue()
    blobs = []
    for path, content in files.items():
        blob = store.put_sync(content)
        blobs.append({"path": path, "sha256": blob.sha256, "size": blob.size})
    if kept:
        blobs.append({"path": "kept.safetensors", "sha256": kept, "size": store.stat_sync(kept).size})
    digest = store.commit_sync({"kind": "training.checkpoint", "blobs": blobs, "progress": asdict(progress)})
    return {"manifest_digest": digest, "phase": phase, "step": progress.step, "progress": asdict(progress)}


def read_progress(checkpoint: Json | None) -> Progress:
    """Where to go on; the beginning when there is no checkpoint with weights."""
    return Progress(**checkpoint["progress"]) if checkpoint and "progress" in checkpoint else Progress()


def read_weights(store: BlobStore, checkpoint: Json) -> dict[str, Tensor]:
    """The weights of a checkpoint, for `load_weights`."""
    return load_safetensors(_read(store, checkpoint, "model.safetensors"))


def write_kept(store: BlobStore, tensors: dict[str, Tensor]) -> str:
    """Stores what a phase keeps of its beginning, once; every checkpoint of the phase names the blob.

    Returns:
        Digest of the blob; empty when the phase keeps nothing.
    """
    return store.put_sync(save_safetensors(tensors)).sha256 if tensors else ""


def read_kept(store: BlobStore, checkpoint: Json) -> dict[str, Tensor]:
    """What `write_kept` stored; nothing where the phase keeps nothing."""
    paths = [entry["path"] for entry in store.load_manifest_sync(checkpoint["manifest_digest"])["blobs"]]
    return load_safetensors(_read(store, checkpoint, "kept.safetensors")) if "kept.safetensors" in paths else {}


def read_optimiser(store: BlobStore, checkpoint: Json, optimiser: torch.optim.Optimizer) -> None:
    """Puts the optimiser's moments and the random state back."""
    state = torch.load(io.BytesIO(_read(store, checkpoint, "optimiser.pt")), weights_only=True)
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])


def _read(store: BlobStore, checkpoint: Json, path: str) -> bytes:
    manifest = store.load_manifest_sync(checkpoint["manifest_digest"])
    digest = next(entry["sha256"] for entry in manifest["blobs"] if entry["path"] == path)
    return store.read_sync(digest)
