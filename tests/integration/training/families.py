"""Tiny base models of each family as model versions in a store, made from their configurations."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM

from libs.common.blobs import BlobStore
from tests.unit.training.samples import rows

VOCABULARY, CONTEXT = 400, 64
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
}
_GROUPED: dict[str, Any] = {**_SHAPE, "num_key_value_heads": 1, "head_dim": 16}
# What each family adds: Qwen2 ties its embeddings and has biases, Qwen3 normalises queries, GLM fuses gate and up.
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": {**_SHAPE, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen3": {**_GROUPED, "tie_word_embeddings": False},
    "llama": {**_SHAPE, "tie_word_embeddings": False},
    "glm": {**_GROUPED, "tie_word_embeddings": False},
    "glm4": {**_GROUPED, "tie_word_embeddings": False},
    "gemma2": {**_GROUPED, "final_logit_softcapping": 2.0},
}
# Tokens by family: all special ones, what begins a prompt, what ends an answer.
_SPECIAL: dict[str, tuple[list[str], list[str], str]] = {
    "qwen2": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [], "<|im_end|>"),
    "qwen3": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [], "<|im_end|>"),
    "glm": (["<|endoftext|>", "[gMASK]", "<sop>"], ["[gMASK]", "<sop>"], "<|endoftext|>"),
    "glm4": (["<|endoftext|>", "[gMASK]", "<sop>"], ["[gMASK]", "<sop>"], "<|endoftext|>"),
}
_NORMS = ("input_layernorm", "post_attention_layernorm")
_USUAL = (["<unk>", "<s>", "</s>"], ["<s>"], "</s>")
BASE_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write_base(folder: Path, family: str, max_shard_size: str = "1GB", dtype: str = "float32") -> Path:
    """A model of a family with random weights, with its tokenizer, as `save_pretrained` lays it out."""
    specials, begin, end = _SPECIAL.get(family, _USUAL)
    tokenizer = _tokenizer(specials, begin)
    ids = {"bos_token_id": None, "pad_token_id": 0, "eos_token_id": tokenizer.token_to_id(end)}
    torch.manual_seed(5)
    config = AutoConfig.for_model(family, **CONFIGS[family], **ids, dtype=dtype)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size=max_shard_size)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "pad_token": specials[0],
        "model_max_length": CONTEXT,
        "chat_template": BASE_TEMPLATE,
    }
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_baichuan(folder: Path, **changes: Any) -> Path:
    """A Llama with its query, key and value packed into one matrix, as Baichuan-7B lays it out."""
    write_base(folder, "llama")
    tensors = load_file(folder / "model.safetensors")
    for layer in range(_SHAPE["num_hidden_layers"]):
        names = [f"model.layers.{layer}.self_attn.{part}_proj.weight" for part in "qkv"]
        tensors[f"model.layers.{layer}.self_attn.W_pack.weight"] = torch.cat([tensors.pop(name) for name in names])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        **_SHAPE,
        "architectures": ["BaiChuanForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaiChuanForCausalLM"},
        "model_type": "baichuan",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **changes,
    }
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def write_chatglm(folder: Path, **changes: Any) -> Path:
    """A GLM under the names of ChatGLM's own code, query, key and value in one matrix with a bias."""
    write_base(folder, "glm")
    given = load_file(folder / "model.safetensors")
    tensors = {
        "transformer.embedding.word_embeddings.weight": given["model.embed_tokens.weight"],
        "transformer.encoder.final_layernorm.weight": given["model.norm.weight"],
        "transformer.output_layer.weight": given["lm_head.weight"],
        "transformer.rotary_pos_emb.inv_freq": torch.ones(4),
    }
    for layer in range(_SHAPE["num_hidden_layers"]):
        ours, theirs = f"model.layers.{layer}.", f"transformer.encoder.layers.{layer}."
        packed = torch.cat([given[f"{ours}self_attn.{part}_proj.weight"] for part in "qkv"])
        tensors |= {
            f"{theirs}self_attention.query_key_value.weight": packed,
            f"{theirs}self_attention.query_key_value.bias": torch.randn(len(packed)),
            f"{theirs}self_attention.dense.weight": given[f"{ours}self_attn.o_proj.weight"],
            f"{theirs}mlp.dense_h_to_4h.weight": given[f"{ours}mlp.gate_up_proj.weight"],
            f"{theirs}mlp.dense_4h_to_h.weight": given[f"{ours}mlp.down_proj.weight"],
            **{f"{theirs}{name}.weight": given[f"{ours}{name}.weight"] for name in _NORMS},
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
        "model_type": "chatglm",
        "padded_vocab_size": VOCABULARY,
        "hidden_size": _SHAPE["hidden_size"],
        "ffn_hidden_size": _SHAPE["intermediate_size"],
        "num_layers": _SHAPE["num_hidden_layers"],
        "num_attention_heads": _SHAPE["num_attention_heads"],
        "kv_channels": _GROUPED["head_dim"],
        "multi_query_attention": True,
        "multi_query_group_num": _GROUPED["num_key_value_heads"],
        "seq_length": CONTEXT,
        "layernorm_epsilon": 1e-5,
        "add_qkv_bias": True,
        "add_bias_linear": False,
        "rmsnorm": True,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "torch_dtype": "float32",
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    asking = {"auto_map": {"AutoTokenizer": ["t.ChatGLMTokenizer", None]}, "tokenizer_class": "ChatGLMTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | asking))
    return folder


# Families whose layout is that of code of their own.
_WRITERS = {"baichuan": write_baichuan, "chatglm": write_chatglm}


def write_family(folder: Path, family: str, **options: Any) -> Path:
    """A tiny model of any family."""
    return _WRITERS[family](folder) if family in _WRITERS else write_base(folder, family, **options)


def commit(store: BlobStore, folder: Path) -> str:
    """The files of a folder as a model version; the digest of its manifest."""
    entries = []
    for path in sorted(folder.iterdir()):
        blob = store.put_sync(path)
        entries.append({"path": path.name, "sha256": blob.sha256, "size": blob.size})
    return store.commit_sync({"kind": "training.model", "blobs": entries})


def base_version(store: BlobStore, family: str, **options: Any) -> str:
    """A tiny base of a family in the store; the digest of its manifest."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return commit(store, write_family(folder, family, **options))


def _tokenizer(specials: list[str], begin: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 20, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([row["text"] for row in rows(60)], trainer)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*begin, "$A"]), special_tokens=[(token, tokenizer.token_to_id(token)) for token in begin]
        )
    return tokenizer
