"""Which files a model folder in the Hugging Face layout may bring, and what is in its small ones."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, cast

from services.training.domain.models import REWARD, TEXT_GENERATION

# Kind of the task that imports a model.
IMPORT_KIND = "training.import_model"
# Files that hold objects of a programming language: reading one runs what is in it. Never opened.
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".keras", ".dill")
_CODE = (".py", ".pyc", ".pyx", ".so", ".dll", ".dylib", ".sh", ".exe", ".ipynb", ".js", ".jar", ".whl")
WEIGHTS = ".safetensors"
INDEX = "model.safetensors.index.json"
CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
README = "README.md"
# What the platform counts with.
MOST_PARAMETERS = (1 << 63) - 1
_KEPT = frozenset(
    {
        CONFIG,
        TOKENIZER,
        TOKENIZER_CONFIG,
        INDEX,
        README,
        *TEMPLATE_FILES,
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
        "spiece.model",
        "preprocessor_config.json",
        "processor_config.json",
        "LICENSE",
        "LICENSE.txt",
        "LICENSE.md",
        "NOTICE",
    }
)
# Names of entries that make transformers load code from the folder or the hub.
_REMOTE_CODE = ("auto_map", "custom_pipelines", "trust_remote_code")
# Tasks of model versions by the end of the class that config.json names.
_TASKS = {
    "ForCausalLM": TEXT_GENERATION,
    "LMHeadModel": TEXT_GENERATION,
    "ForConditionalGeneration": TEXT_GENERATION,
    "ForSequenceClassification": REWARD,
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
}
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
_LICENCE = re.compile(r"^licen[sc]e:[ \t]*['\"]?([A-Za-z0-9][A-Za-z0-9 .+_-]{0,99})['\"]?[ \t]*$", re.MULTILINE)


class BadModel(Exception):
    """The files are no model that can be taken in; the message names the file and what is wrong with it."""


def fate(path: str) -> bool:
    """Whether a file is kept (True) or left out (False), by its path alone.

    Raises:
        BadModel: It must not be in a model at all.
    """
    lower = path.lower()
    if lower.endswith(_PICKLES):
        raise BadModel(
            f"{path}: weights are taken as safetensors only; a file of this kind can run code when it is read"
        )
    if lower.endswith(_CODE):
        raise BadModel(f"{path}: a model brings no code; leave the file out, nothing here needs it")
    return "/" not in path and (path in _KEPT or path.endswith(WEIGHTS))


def common_folder(paths: list[str]) -> str:
    """The folder that all paths lie in, with its slash, so that an archive of one folder is that folder."""
    first = {path.split("/", 1)[0] + "/" if "/" in path else "" for path in paths}
    return first.pop() if len(first) == 1 else ""


def parse_json(path: str, content: str) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        BadModel: It is none.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadModel(f"{path}: it is not JSON") from error
    if not isinstance(document, dict):
        raise BadModel(f"{path}: it is no JSON object")
    return cast("dict[str, Any]", document)


def refuse_remote_code(path: str, document: Any) -> None:
    """Raises BadModel where a file, anywhere in it, asks for code that it or the hub brings along."""
    waiting = [document]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            for name in _REMOTE_CODE:
                if each.get(name):
                    raise BadModel(f"{path}: {name} asks for code of the model's own, which is never run here")
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


@dataclass(frozen=True)
class Config:
    """What config.json says: the family (`llama`, `qwen2`), the tokens that it takes (0: not said), and its task as in
    `ModelVersion.task`."""

    model_type: str
    context_length: int
    task: str


def read_config(document: dict[str, Any], known: frozenset[str]) -> Config:
    """What the platform needs of config.json.

    Args:
        known: model types that can be loaded here.

    Raises:
        BadModel: No type, an unknown one, or code of its own.
    """
    refuse_remote_code(CONFIG, document)
    model_type = document.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise BadModel(f"{CONFIG}: it has no model_type")
    if model_type not in known:
        raise BadModel(f"{CONFIG}: the model_type {model_type[:60]!r} is not known here")
    text = document.get("text_config")
    places = (document, text) if isinstance(text, dict) else (document,)
    names = ("max_position_embeddings", "n_positions", "seq_length", "max_sequence_length")
    lengths = [place.get(name) for place in places for name in names]
    length = next((value for value in lengths if type(value) is int and 0 < value < 2**31), 0)
    return Config(model_type, length, _task(document.get("architectures")))


def _task(architectures: Any) -> str:
    """What the class is for that a config.json names: `LlamaForCausalLM`."""
    names = cast("list[Any]", architectures) if isinstance(architectures, list) else []
    name = str(names[0]) if names else ""
    return next((task for ending, task in _TASKS.items() if name.endswith(ending)), "")


def shards(index: dict[str, Any]) -> dict[str, str]:
    """Tensor to file, as the index of sharded weights says it.

    Raises:
        BadModel: It says nothing of the kind.
    """
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise BadModel(f"{INDEX}: it has no weight_map")
    for tensor, file in cast("dict[str, Any]", places).items():
        if not isinstance(file, str) or "/" in file or not file.endswith(WEIGHTS):
            raise BadModel(
                f"{INDEX}: tensor {tensor[:60]!r} is said to lie in {str(file)[:60]!r}, which is no file of weights"
            )
    return cast("dict[str, str]", places)


def licence_of(readme: str) -> str:
    """The licence that the front matter of a README states; empty if it has none."""
    front = _FRONT_MATTER.match(readme)
    found = _LICENCE.search(front[1]) if front else None
    return found[1].strip() if found else ""


def templates(documents: dict[str, dict[str, Any]], texts: dict[str, str]) -> dict[str, str]:
    """Chat templates by what they are called in errors.

    Args:
        documents: parsed JSON files by path.
        texts: text files by path.

    Raises:
        BadModel: A template is no text.
    """
    found: dict[str, str] = {}
    for path in (TOKENIZER_CONFIG, "chat_template.json"):
        given = documents.get(path, {}).get("chat_template")
        entries: list[Any] = given if isinstance(given, list) else [{"name": "", "template": given}] if given else []
        for entry in entries:
            name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
            if not isinstance(name, str) or not isinstance(text, str):
                raise BadModel(f"{path}: chat_template is no template")
            found[f"{path} chat_template {name}".strip()] = text
    if "chat_template.jinja" in texts:
        found["chat_template.jinja"] = texts["chat_template.jinja"]
    return found
