"""Checkpoints: trained weights, optimiser and random state under one manifest, written by the leading worker."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import asdict, dataclass, field
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from libs.common.blobs import LOST, BlobStore, BlobWriter
from libs.common.domain import DomainError
from libs.compute.context import EngineError
from services.training.engines.sharding import like

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


@dataclass(frozen=True)
class Snapshot:
    """The state of a run behind a step, in host memory that nobody else changes.

    Attributes:
        weights: that are trained, by name; those that are frozen the base has.
        moments: of the optimiser, by number of the parameter; None between two phases, as each has its own.
        random: state of the random generator.
        phase: name of the current phase.
        kept: blob with what the phase keeps of its beginning; see `write_kept`.
    """

    weights: dict[str, Tensor]
    moments: dict[int, Json] | None
    random: Tensor
    progress: Progress
    phase: str
    kept: str = ""


def write_snapshot(store: BlobStore, snapshot: Snapshot) -> Json:
    """Writes the blobs and then the manifest with their digests, which makes it a checkpoint.

    All goes from the snapshot straight into the store: it takes no memory and no disk beside, and little of the cores,
    which the steps have need of meanwhile.

    Returns:
        What to keep as the task's checkpoint: `manifest_digest`, `bytes`, `phase`, `step` (of that phase) and
        `progress`.

    Raises:
        DomainError: STORAGE_FULL, STORAGE_UNAVAILABLE.
    """
    with store.writer() as writer:
        _write_safetensors(snapshot.weights, writer)
        blobs = [writer.finish().entry("model.safetensors")]
    if snapshot.moments is not None:
        with store.writer() as writer:
            _write_state({"optimiser": {"state": snapshot.moments}, "random": snapshot.random}, writer)
            blobs.append(writer.finish().entry("optimiser.pt"))
    if snapshot.kept:
        size = store.stat_sync(snapshot.kept).size
        blobs.append({"path": "kept.safetensors", "sha256": snapshot.kept, "size": size})
    progress = asdict(snapshot.progress)
    digest = store.commit_sync({"kind": "training.checkpoint", "blobs": blobs, "progress": progress})
    return {
        "manifest_digest": digest,
        "bytes": sum(blob["size"] for blob in blobs),
        "phase": snapshot.phase,
        "step": snapshot.progress.step,
        "progress": progress,
    }


# Names of the format, https://huggingface.co/docs/safetensors; what is trained has a fraction.
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def _write_safetensors(tensors: dict[str, Tensor], out: BlobWriter) -> None:
    """Writes tensors in the format of safetensors, whose own writer knows files and whole copies in memory only: the
    length of the header in eight bytes, the header, and the tensors, the widest numbers first as theirs does."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: Json = {}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(struct.pack("<Q", len(text)) + text)
    for _, tensor in ordered:
        out.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _write_state(state: Json, out: BlobWriter) -> None:
    try:
        torch.save(state, cast("IO[bytes]", out))
    except RuntimeError as error:
        # It closes its archive behind a write that failed, too, and then complains of that.
        if isinstance(error.__context__, DomainError):
            raise error.__context__ from None
        raise


def read_progress(checkpoint: Json | None) -> Progress:
    """Where to go on; the beginning when there is no checkpoint with weights."""
    return Progress(**checkpoint["progress"]) if checkpoint and "progress" in checkpoint else Progress()


def read_weights(store: BlobStore, checkpoint: Json) -> dict[str, Tensor]:
    """The weights of a checkpoint, for `load_weights`. Raises CONTENT_INVALID, it is damaged."""
    return _tensors(store, checkpoint, "model.safetensors")


def write_kept(store: BlobStore, tensors: dict[str, Tensor]) -> str:
    """Stores what a phase keeps of its beginning, once; every checkpoint of the phase names the blob.

    Returns:
        Digest of the blob; empty when the phase keeps nothing.
    """
    return store.put_sync(save_safetensors(tensors)).sha256 if tensors else ""


def read_kept(store: BlobStore, checkpoint: Json) -> dict[str, Tensor]:
    """What `write_kept` stored; nothing where the phase keeps nothing."""
    return _tensors(store, checkpoint, "kept.safetensors") if "kept.safetensors" in _paths(store, checkpoint) else {}


def read_optimiser(store: BlobStore, checkpoint: Json, optimiser: torch.optim.Optimizer) -> None:
    """Puts the optimiser's moments and the random state back; of a divided optimiser each worker takes its share.

    Its options are its own: how it computes may differ between the machines.
    """
    content = io.BytesIO(_read(store, checkpoint, "optimiser.pt"))
    try:
        found = torch.load(content, weights_only=True)
    except Exception as error:  # whatever its reader says of bytes that are none of ours
        raise _damaged(checkpoint, "optimiser.pt") from error
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state = {
        number: {
            name: like(value, parameters[number]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for number, values in found["optimiser"]["state"].items()
    }
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    torch.set_rng_state(found["random"])


def _tensors(store: BlobStore, checkpoint: Json, path: str) -> dict[str, Tensor]:
    try:
        return load_safetensors(_read(store, checkpoint, path))
    except SafetensorError as error:
        raise _damaged(checkpoint, path) from error


def _read(store: BlobStore, checkpoint: Json, path: str) -> bytes:
    digest = _paths(store, checkpoint).get(path)
    if digest is None:
        raise _damaged(checkpoint, path)
    try:
        return store.read_sync(digest)
    except DomainError as error:
        if error.reason not in LOST:
            raise
        raise _damaged(checkpoint, path) from error


def _paths(store: BlobStore, checkpoint: Json) -> dict[str, str]:
    """Digests of its files by path."""
    try:
        manifest = store.load_manifest_sync(checkpoint["manifest_digest"])
    except DomainError as error:
        if error.reason not in LOST:
            raise
        raise _damaged(checkpoint, "its manifest") from error
    return {entry["path"]: entry["sha256"] for entry in manifest["blobs"]}


def _damaged(checkpoint: Json, path: str) -> EngineError:
    """CONTENT_INVALID that names the checkpoint and its file."""
    message = (
        f"The checkpoint of {checkpoint['phase']} at step {checkpoint['step']} cannot be read: {path} is missing or "
        "damaged. The run cannot go on from it; run the training again."
    )
    return EngineError("CONTENT_INVALID", message, detail=path)
