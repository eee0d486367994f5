"""Making detectors: the built-in one is trained, the weights of others are unpacked and tried."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

from libs.archives.entries import BadEntry
from libs.archives.errors import BrokenOff, UnreadableFile
from libs.archives.zip_reader import read_zip
from libs.common.blobs import BlobStore, Json, manifest_digests
from libs.compute.context import EngineContext
from libs.compute.files import joined_file
from libs.compute.scratch import scratch_folder
from services.dataset.domain.detectors import DetectorKind
from services.dataset.engines.detection.adapters import open_detector
from services.dataset.engines.detection.builtin import load_detector, save_detector
from services.dataset.engines.detection.measuring import measure, unseen_scenes
from services.dataset.engines.detection.training import Recipe, train
from services.dataset.engines.detection.unusable import unusable

_FORMAT = "argosy.detector/1"
_TEST_SCENES = 300
_TRAINED_SHARE = 0.95
_REPORT_SECONDS = 0.5
# Of a folder with weights; the largest are a few gigabytes in five to ten files.
_MOST_FILES = 100


def run(ctx: EngineContext) -> dict[str, Any]:
    """Makes one detector.

    The spec names the `kind` and either `steps` and `seed`, or `archive` and `archive_grant` (manifest of the pieces of
    a zip with the weights, which may lie in one folder).

    Returns:
        `manifest_digest`, `byte_count` and `card`.

    Raises:
        DomainError: PREFLIGHT_FAILED, the archive or the weights cannot be used.
    """
    kind = DetectorKind(ctx.spec["kind"])
    with scratch_folder("argosy-detector-") as folder:
        if kind is DetectorKind.BUILT_IN:
            card = _train(ctx, folder)
        else:
            _unpack(ctx, folder)
            ctx.progress(0.5, "Trying the weights")
            open_detector(kind, folder)
            card = {"kind": kind.name.lower()}
        made = _store(ctx.blobs_write, folder)
    ctx.progress(1.0, f"{made['byte_count'] / 1e6:,.1f} MB of weights", bytes=made["byte_count"])
    return {**made, "card": card}


def _train(ctx: EngineContext, folder: Path) -> Json:
    recipe = Recipe(steps=ctx.spec["steps"], seed=ctx.spec["seed"])
    began, reported = time.monotonic(), 0.0

    def progress(step: int, loss: float) -> None:
        nonlocal reported
        ctx.stop_if_cancelled()
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            ctx.progress(_TRAINED_SHARE * step / recipe.steps, f"step {step:,} of {recipe.steps:,}, loss {loss:.3f}")

    network = train(recipe, progress)
    seconds = round(time.monotonic() - began, 1)
    ctx.progress(_TRAINED_SHARE, f"Looking at {_TEST_SCENES} scenes that it never saw")
    card: Json = {"trained_on": "drawn scenes of coloured shapes", "recipe": vars(recipe), "training_seconds": seconds}
    save_detector(network, folder, card)
    scenes = unseen_scenes(_TEST_SCENES, recipe.seed + 1)
    return {**card, **measure(load_detector(folder), scenes), "test_scenes": _TEST_SCENES}


def _unpack(ctx: EngineContext, folder: Path) -> None:
    """Writes the files of the archive, by the last part of their names, into the folder.

    Names of an archive are not to be trusted as paths; adapters need no folders.
    """
    store = ctx.blobs_read(ctx.spec["archive_grant"])
    count = 0
    try:
        with joined_file(store, manifest_digests(store.load_manifest_sync(ctx.spec["archive"]))) as archive:
            for entry in read_zip(archive):
                ctx.stop_if_cancelled()
                count += 1
                if entry.error or count > _MOST_FILES:
                    raise unusable(f"{entry.name[:200]!r}: {entry.error or f'more than {_MOST_FILES} files'}")
                path = folder / entry.name.rpartition("/")[2]
                if path.exists():
                    raise unusable(f"{path.name!r} is in the archive twice")
                with path.open("wb") as file:
                    file.writelines(entry.chunks)
    except (UnreadableFile, BrokenOff, BadEntry) as error:
        raise unusable(f"the archive cannot be read: {error}") from error


def _store(store: BlobStore, folder: Path) -> Json:
    """Puts the files of a folder into the store with a manifest of their names."""
    blobs: list[Json] = []
    for path in sorted(folder.iterdir()):
        blob = store.put_sync(path)
        blobs.append({"path": path.name, "size": blob.size, "sha256": blob.sha256})
    digest = store.commit_sync({"format": _FORMAT, "blobs": blobs})
    return {"manifest_digest": digest, "byte_count": sum(blob["size"] for blob in blobs)}


def fetch_detector(store: BlobStore, manifest: str, folder: Path) -> None:
    """Writes the files of a stored detector into a folder."""
    for blob in cast("list[Json]", store.load_manifest_sync(manifest)["blobs"]):
        store.export_sync(blob["sha256"], folder / blob["path"])
