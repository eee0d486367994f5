"""ChatGLM2, ChatGLM3 and GLM-4 in the layout of their own code as the GLM that they are.

transformers has the architecture (`GlmConfig`: rotary positions on half of each head, grouped keys and values, gate
and up in one matrix), under other names and with query, key and value apart. The first ChatGLM (6B) is another one.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from libs.compute.context import EngineError
from services.training.domain.bases import CONFIG

Json = dict[str, Any]

_PACKED = ".self_attention.query_key_value."
_PLACES = (
    ("embedding.word_embeddings.", "model.embed_tokens."),
    ("encoder.layers.", "model.layers."),
    ("encoder.final_layernorm.", "model.norm."),
    ("output_layer.", "lm_head."),
    (".self_attention.dense.", ".self_attn.o_proj."),
    (".mlp.dense_h_to_4h.", ".mlp.gate_up_proj."),
    (".mlp.dense_4h_to_h.", ".mlp.down_proj."),
)
_NUMBERS = {
    "padded_vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "kv_channels": "head_dim",
    "seq_length": "max_position_embeddings",
}
# What GLM has not.
_OTHERS = ("add_bias_linear", "apply_residual_connection_post_layernorm", "pre_seq_len", "quantization_bit")
_ROPE_BASE = 10_000.0


def glm_config(config: Json) -> Json:
    """The config.json of the GLM.

    Raises:
        EngineError: CONTENT_INVALID, it lacks a number, or is one of another architecture.
    """
    other = next((name for name in _OTHERS if config.get(name)), "")
    if other or not config.get("rmsnorm"):
        why = f"its config.json sets {other}" if other else "it normalises otherwise (ChatGLM-6B)"
        message = f"The model is a ChatGLM that cannot be read: {why}. ChatGLM2, ChatGLM3 and GLM-4 can."
        raise EngineError("CONTENT_INVALID", message, detail=CONFIG)
    ratio = config.get("rope_ratio", 1.0)
    return {
        "model_type": "glm",
        "architectures": ["GlmForCausalLM"],
        **{known: _number(config, name) for name, known in _NUMBERS.items()},
        "num_key_value_heads": _groups(config),
        "rms_norm_eps": config.get("layernorm_epsilon", 1e-5),
        "attention_bias": bool(config.get("add_qkv_bias")),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": _ROPE_BASE * (ratio if isinstance(ratio, int | float) and ratio > 0 else 1.0),
            "partial_rotary_factor": 0.5,
        },
        "tie_word_embeddings": False,
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": config.get("eos_token_id"),
        "pad_token_id": config.get("pad_token_id"),
        "torch_dtype": config.get("torch_dtype", "float16"),
    }


def glm_tensors(tensors: dict[str, Tensor], config: Json) -> dict[str, Tensor]:
    """The tensors of one file under GLM's names.

    Args:
        config: of the ChatGLM.

    Raises:
        EngineError: CONTENT_INVALID, query, key and value have not the rows that the configuration says.
    """
    size = _number(config, "kv_channels")
    rows = [_number(config, "num_attention_heads") * size, *[_groups(config) * size] * 2]
    found: dict[str, Tensor] = {}
    for given, tensor in tensors.items():
        name = given.removeprefix("transformer.")
        for theirs, ours in _PLACES:
            name = name.replace(theirs, ours)
        if _PACKED in name:
            if len(tensor) != sum(rows):
                message = f"The model's tensor {given[:100]} has {len(tensor):,} rows; config.json wants {sum(rows):,}."
                raise EngineError("CONTENT_INVALID", message, detail=CONFIG)
            for part, piece in zip("qkv", tensor.split(rows), strict=True):
                found[name.replace(_PACKED, f".self_attn.{part}_proj.")] = piece.contiguous()
        elif not name.endswith("rotary_pos_emb.inv_freq"):
            found[name] = tensor
    return found


def _groups(config: Json) -> int:
    return _number(config, "multi_query_group_num" if config.get("multi_query_attention") else "num_attention_heads")


def _number(config: Json, name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise EngineError("CONTENT_INVALID", f"The model's config.json has no {name}.", detail=CONFIG)
    return value
