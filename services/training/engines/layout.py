"""The finished model as files in the Hugging Face layout, committed as one manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from libs.common.blobs import BlobStore
from services.training.domain.bases import ADAPTER_CONFIG, CONFIG
from services.training.engines.base import ADAPTER_FOLDER, INDEX, TEMPLATES, TOKENIZER_CONFIG
from services.training.engines.tokenizer import BEGIN_ID, END_ID, PAD_ID

Json = dict[str, Any]


def config_files(config: PreTrainedConfig) -> dict[str, bytes]:
    """`config.json` and `generation_config.json` of a model from nothing."""
    generation = {"bos_token_id": BEGIN_ID, "eos_token_id": END_ID, "pad_token_id": PAD_ID, "do_sample": False}
    return {
        "config.json": config.to_json_string().encode(),
        "generation_config.json": json.dumps(generation, indent=2).encode() + b"\n",
    }


def based_files(base: Path, template: str | None, complete: bool) -> dict[str, bytes]:
    """The small files of a model that started from a base: as they came, but for the chat template.

    Args:
        base: folder with the small files of the base.
        template: chat template that the model was tuned with; None: the base's stays.
        complete: whether it is a model of its own; the tokenizer alone goes beside an adapter.
    """
    paths = {
        path.name: path for folder in (base, base / ADAPTER_FOLDER) if folder.exists() for path in folder.iterdir()
    }
    foreign = {INDEX, ADAPTER_CONFIG} | (set() if complete else {CONFIG, "generation_config.json"})
    files = {
        name: path.read_bytes()
        for name, path in paths.items()
        if path.is_file() and name not in foreign and path.suffix != ".md"
    }
    if template is not None:
        settings = json.loads(files.get(TOKENIZER_CONFIG, b"{}"))
        settings["chat_template"] = template
        files = {name: content for name, content in files.items() if name not in TEMPLATES}
        files[TOKENIZER_CONFIG] = json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n"
    return files


def commit_model(store: BlobStore, weights: dict[str, str], files: dict[str, bytes]) -> tuple[str, list[Json]]:
    """Stores the files beside the weights.

    Args:
        weights: SHA-256 of the files that the leading worker wrote, by path.
        files: the others, by path.

    Returns:
        Digest of the manifest and its entries `{path, sha256, size}`. Equal content gives an equal digest.
    """
    blobs = {path: store.put_sync(content) for path, content in files.items()}
    blobs |= {path: store.stat_sync(digest) for path, digest in weights.items()}
    entries = [blob.entry(path) for path, blob in sorted(blobs.items())]
    return store.commit_sync({"kind": "training.model", "blobs": entries}), entries
