"""A tiny model of each family from outside: imported from a folder, and then taught an adapter; ChatGLM by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from libs.common.blobs import BlobStore
from libs.compute.context import EngineError, LocalContext
from services.training.domain.adapter import Adapter
from services.training.domain.spec import Method
from services.training.engines import import_model, train
from services.training.engines.base import read_config
from services.training.engines.model import load_base
from tests.integration.training.families import write_chatglm, write_family
from tests.unit.training.samples import context, phase, rows, tiny_spec

MATRICES = (
    "self_attention.query_key_value.weight",
    "self_attention.query_key_value.bias",
    "self_attention.dense.weight",
    "mlp.dense_h_to_4h.weight",
    "mlp.dense_4h_to_h.weight",
)

# What each is in the platform.
FAMILIES = {"qwen2": "qwen2", "qwen3": "qwen3", "llama": "llama", "glm": "glm", "chatglm": "glm", "baichuan": "llama"}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_adapter_on_an_imported_model_of_each_family(tmp_path: Path, family: str) -> None:
    store, folder = BlobStore(f"file://{tmp_path}/blobs"), tmp_path / "open" / family
    folder.mkdir(parents=True)
    write_family(folder, family)
    given = {"folder": str(folder), "open_folders": [str(folder.parent)], "max_bytes": 10_000_000}
    made = import_model.run(LocalContext(given, blobs_write=store, blobs_read=store))
    assert (made["architecture"], made["context_length"], made["task"]) == (FAMILIES[family], 64, "text-generation")
    documents = [store.read_sync(file["sha256"]) for file in made["files"] if file["path"].endswith("config.json")]
    # Nothing of it asks for code any more.
    assert not any("auto_map" in json.loads(document) for document in documents)

    spec = tiny_spec(phases=(phase(Method.SFT, 2),), adapter=Adapter(rank=2, alpha=4.0))
    ctx = context(store, spec, rows(24))
    ctx.spec["base"] = {"grant": "", "manifest_digest": made["manifest_digest"], "name": "orgs/acme/modelProjects/m"}
    paths = {file["path"] for file in train.run(ctx)["files"]}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= paths


def chatglm_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a ChatGLM3 by its definition: rotary positions on pairs of the first half of each head."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    heads, groups, size = (config[name] for name in ("num_attention_heads", "multi_query_group_num", "kv_channels"))

    def norm(hidden: torch.Tensor, name: str) -> torch.Tensor:
        scaled = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + config["layernorm_epsilon"])
        return tensors[f"transformer.encoder.{name}.weight"] * scaled

    angles = torch.outer(torch.arange(len(ids)), 10000.0 ** (-torch.arange(0, size // 2, 2) / (size // 2)))[:, None]

    def turned(states: torch.Tensor) -> torch.Tensor:
        one, other = states[..., : size // 2 : 2], states[..., 1 : size // 2 : 2]
        pairs = [one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()]
        return torch.cat([torch.stack(pairs, -1).flatten(-2), states[..., size // 2 :]], -1)

    hidden = tensors["transformer.embedding.word_embeddings.weight"][ids]
    for layer in range(config["num_layers"]):
        part = f"layers.{layer}."
        own = {name: tensors[f"transformer.encoder.{part}{name}"] for name in MATRICES}
        normed = norm(hidden, f"{part}input_layernorm")
        mixed = normed @ own["self_attention.query_key_value.weight"].T + own["self_attention.query_key_value.bias"]
        query, key, value = mixed.view(len(ids), -1, size).split([heads, groups, groups], 1)
        key, value = (states.repeat_interleave(heads // groups, 1) for states in (turned(key), value))
        query, key, value = (states.transpose(0, 1) for states in (turned(query), key, value))
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + seen.transpose(0, 1).flatten(1) @ own["self_attention.dense.weight"].T
        inner = norm(hidden, f"{part}post_attention_layernorm") @ own["mlp.dense_h_to_4h.weight"].T
        gate, up = inner.chunk(2, -1)
        hidden = hidden + (nn.functional.silu(gate) * up) @ own["mlp.dense_4h_to_h.weight"].T
    return norm(hidden, "final_layernorm") @ tensors["transformer.output_layer.weight"].T


def test_chatglm_is_the_glm_that_it_is(tmp_path: Path) -> None:
    folder = write_chatglm(tmp_path)
    ids = torch.randint(3, 300, (20,), generator=torch.Generator().manual_seed(2))
    expected = chatglm_logits(folder, ids)
    assert read_config(folder).model_type == "glm"
    with torch.no_grad():
        torch.testing.assert_close(load_base(folder, torch.float32)(input_ids=ids[None]).logits[0], expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rmsnorm": False}, r"it normalises otherwise \(ChatGLM-6B\)"),
        ({"add_bias_linear": True}, "sets add_bias_linear"),
        ({"kv_channels": None}, "has no kv_channels"),
        ({"multi_query_group_num": 2}, "query_key_value.bias has 64 rows; config.json wants 96"),
    ],
)
def test_other_chatglms_are_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(EngineError, match=expected) as caught:
        read_config(write_chatglm(tmp_path, **changes))
    assert caught.value.reason == "CONTENT_INVALID"
