"""Baichuan-7B and Baichuan2-7B as the Llama that they are.

Both are Llama's architecture with query, key and value in one matrix (`W_pack`); transformers has no class for them
without code from the model's folder. Baichuan2 besides scales each row of its output embedding to norm 1 (`NormHead`;
Yang et al., 2023, section 2.3), which is done here once: afterwards it is an output embedding as any other. The 13B
models have ALiBi in place of rotary positions and are no Llama.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from libs.compute.context import EngineError
from services.training.domain.bases import CONFIG

Json = dict[str, Any]

_PACKED = ".self_attn.W_pack.weight"
_HEAD = "lm_head.weight"
# Only Baichuan2 has it, and its configuration has no other mark of the normalised output embedding.
BAICHUAN2_VOCABULARY = 125_696
_KEPT = (
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "rms_norm_eps",
    "tie_word_embeddings",
    "torch_dtype",
    "use_cache",
    "vocab_size",
)


def llama_config(config: Json) -> Json:
    """The config.json of the Llama.

    Raises:
        EngineError: CONTENT_INVALID, it is one with ALiBi (13B).
    """
    if not config.get("max_position_embeddings"):
        message = (
            "The model is a Baichuan with ALiBi positions (Baichuan-13B, Baichuan2-13B): only those with rotary "
            "positions (7B) can be read."
        )
        raise EngineError("CONTENT_INVALID", message, detail=CONFIG)
    kept = {name: config[name] for name in _KEPT if name in config}
    return kept | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def llama_tensors(tensors: dict[str, Tensor], config: Json) -> dict[str, Tensor]:
    """The tensors of one file under Llama's names.

    Args:
        config: of the Baichuan.
    """
    return unpacked(tensors, config.get("vocab_size") == BAICHUAN2_VOCABULARY)


def unpacked(tensors: dict[str, Tensor], normalised_head: bool) -> dict[str, Tensor]:
    """The tensors of one file under Llama's names.

    Args:
        normalised_head: whether the rows of the output embedding are used at norm 1.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(_PACKED) and tensor.ndim == 2 and len(tensor) % 3 == 0:
            layer = name.removesuffix(_PACKED)
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{layer}.self_attn.{part}_proj.weight"] = piece.contiguous()
        elif name == _HEAD and normalised_head:
            found[name] = nn.functional.normalize(tensor)
        elif not name.endswith("rotary_emb.inv_freq"):
            found[name] = tensor
    return found
