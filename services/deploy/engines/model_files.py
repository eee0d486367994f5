"""Brings the files of a model version from the blob store to a folder that an inference engine can load."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from libs.common.blobs import BlobStore
from services.deploy.engines.errors import ModelRefused

# Weights only as safetensors: pickled weights (.bin, .pt) and Python files would run code of whoever made the model.
_ALLOWED_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja", ".md"})
# Texts without a suffix, that models come with.
_ALLOWED_NAMES = frozenset({"LICENSE", "NOTICE"})


def materialise_model(grant: str, manifest_digest: str, folder: Path) -> Path:
    """Writes every file of the granted manifest below `folder`, which is emptied first.

    Args:
        grant: read grant of the model version.
        manifest_digest: SHA-256 of its manifest. The manifest and each file are checked against their digests.
        folder: belongs to one replica alone.

    Returns:
        The folder.

    Raises:
        ModelRefused: the manifest holds a file that is not allowed, or is not a model in Hugging Face layout.
        DomainError: GRANT_DENIED or STORAGE_UNAVAILABLE from the blob store.
    """
    store = BlobStore.from_grant(grant)
    files = check_manifest(store.load_manifest_sync(manifest_digest))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    for path, sha256 in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        store.export_sync(sha256, target)
    check_config(folder)
    return folder


def check_manifest(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Path to SHA-256 of each file of a model's manifest.

    Raises:
        ModelRefused: no files, a path that leaves the folder, or a kind of file that could carry code.
    """
    files: dict[str, str] = {}
    for entry in manifest.get("blobs", []):
        path = PurePosixPath(str(entry["path"]))
        if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in str(path):
            raise ModelRefused(f"the path {str(path)!r} leaves the model's folder")
        if path.suffix not in _ALLOWED_SUFFIXES and path.name not in _ALLOWED_NAMES:
            raise ModelRefused(f"{str(path)!r} is not a kind of file that is served; weights must be safetensors")
        files[str(path)] = str(entry["sha256"])
    if not any(path.endswith(".safetensors") for path in files):
        raise ModelRefused("the model has no safetensors file")
    return files


def check_config(folder: Path) -> None:
    """Raises ModelRefused if config.json is missing, broken, or names Python code to load (`auto_map`)."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelRefused("the model has no readable config.json") from error
    if not isinstance(config, dict) or "auto_map" in config:
        raise ModelRefused("the model needs code of its own, which is not loaded")


def remove_model(folder: Path) -> None:
    """Removes the folder. Weights are in memory by then; what is left of it after a crash goes at the next start."""
    if os.path.isdir(folder):
        shutil.rmtree(folder, ignore_errors=True)
