"""Families that transformers reads only by code in the model's folder, rewritten as those that it knows itself: the
same numbers under other names, so that nothing of that code is ever run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from services.training.domain.bases import CONFIG
from services.training.domain.model_files import INDEX, TOKENIZER, TOKENIZER_CONFIG
from services.training.engines import baichuan, chatglm

Json = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """How a family becomes another one.

    Attributes:
        config: of its config.json the new one. Raises CONTENT_INVALID for models that are not of it.
        tensors: of the tensors of one file, and its config.json, those of the new file.
    """

    config: Callable[[Json], Json]
    tensors: Callable[[dict[str, Tensor], Json], dict[str, Tensor]]


# By the model_type of their config.json.
FAMILIES = {
    "baichuan": Family(baichuan.llama_config, baichuan.llama_tensors),
    "chatglm": Family(chatglm.glm_config, chatglm.glm_tensors),
}


def rewrite(folder: Path, config: Json) -> Json:
    """Rewrites the files of a folder whose weights are sound.

    Args:
        config: its config.json, of one of `FAMILIES`.

    Returns:
        The new config.json.

    Raises:
        EngineError: CONTENT_INVALID, it is no model of the family that can be read.
    """
    family = FAMILIES[config["model_type"]]
    known = family.config(config)
    places: dict[str, str] = {}
    size = 0
    for path in sorted(folder.glob("*.safetensors")):
        tensors = family.tensors(load_file(path), config)
        save_file(tensors, path, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, path.name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if (folder / INDEX).exists():
        _write(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": places})
    if (folder / TOKENIZER).exists() and (folder / TOKENIZER_CONFIG).exists():
        # tokenizer.json says all that the tokenizer's own code would do.
        settings = json.loads((folder / TOKENIZER_CONFIG).read_bytes())
        settings.pop("auto_map", None)
        _write(folder / TOKENIZER_CONFIG, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
    _write(folder / CONFIG, known)
    return known


def _write(path: Path, document: Json) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False))
