"""The finished model as files in the Hugging Face layout, committed as one manifest."""

from __future__ import annotations

import json
from typing import Any

from transformers import LlamaConfig

from libs.common.blobs import BlobStore
from services.training.engines.tokenizer import BEGIN_ID, END_ID, PAD_ID

Json = dict[str, Any]


def config_files(config: LlamaConfig) -> dict[str, bytes]:
    """`config.json` and `generation_config.json`."""
    generation = {"bos_token_id": BEGIN_ID, "eos_token_id": END_ID, "pad_token_id": PAD_ID, "do_sample": False}
    return {
        "config.json": config.to_json_string().encode(),
        "generation_config.json": json.dumps(generation, indent=2).encode() + b"\n",
    }


def commit_model(store: BlobStore, weights_digest: str, files: dict[str, bytes]) -> tuple[str, list[Json]]:
    """Stores the files beside the weights.

    Args:
        weights_digest: blob with `model.safetensors`.
        files: the others, by path.

    Returns:
        Digest of the manifest and its entries `{path, sha256, size}`. Equal content gives an equal digest.
    """
    blobs = {path: store.put_sync(content) for path, content in files.items()}
    blobs["model.safetensors"] = store.stat_sync(weights_digest)
    entries = [{"path": path, "sha256": blob.sha256, "size": blob.size} for path, blob in sorted(blobs.items())]
    return store.commit_sync({"kind": "training.model", "blobs": entries}), entries
