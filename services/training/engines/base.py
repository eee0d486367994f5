"""A base model version in a folder, every file looked at before anything of it is used. Nothing in it is run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Encoding, Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from libs.compute.context import EngineError
from services.training.domain.adapter import Adapter
from services.training.domain.bases import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    adapter_of,
    architecture_of,
    layers_of,
)
from services.training.engines.chat_template import template_fault
from services.training.engines.families import FAMILIES, rewrite
from services.training.engines.scorer import SCORED, is_scorer
from services.training.engines.tokenizer import SpecialTokens

Json = dict[str, Any]
Shapes = dict[str, list[int]]
T = TypeVar("T")

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
ADAPTER_FOLDER = "adapter"
# Weights only as safetensors: pickles (.bin, .pt) and Python files would run code of whoever made the model.
_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja", ".md"})
# Texts without a suffix, that models come with.
_NAMES = frozenset({"LICENSE", "NOTICE"})
# How what is wrong with a base begins.
OF_BASE = "The base model's "
# Tensors that old files hold and that models compute themselves now.
_COMPUTED = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


@dataclass(frozen=True)
class BaseText:
    """How a model reads and writes text: that of a base, or by default of a tokenizer that is made here."""

    tokenizer: Tokenizer
    special: SpecialTokens = field(default_factory=SpecialTokens)

    @property
    def opening(self) -> str:
        """What comes before every prompt."""
        return "".join(self.tokenizer.id_to_token(token) or "" for token in self.special.begin)

    @property
    def ending(self) -> str:
        """What ends an answer."""
        return self.tokenizer.id_to_token(self.special.end) or ""


def refused(path: str, why: str) -> EngineError:
    """CONTENT_INVALID that names the file."""
    return EngineError("CONTENT_INVALID", f"{OF_BASE}{path} {why}.", detail=path)


def bring(store: BlobStore, manifest_digest: str, folder: Path) -> Path:
    """Writes the files of a model version below a folder.

    Raises:
        EngineError: CONTENT_INVALID, a file of a kind that can carry code, or a path that leaves the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for entry in store.load_manifest_sync(manifest_digest)["blobs"]:
        path = PurePosixPath(str(entry["path"]))
        if len(path.parts) != 1 or path.parts[0] == ".." or path.is_absolute():
            raise refused(repr(str(path)), "does not lie in the model's folder itself")
        if path.suffix not in _SUFFIXES and path.name not in _NAMES:
            raise refused(str(path), "is not read: weights must be safetensors, and a model brings no code")
        store.export_sync(str(entry["sha256"]), folder / path.name)
    return folder


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a base whose weights fit it. A folder of one of `FAMILIES` is rewritten first.

    Raises:
        EngineError: CONTENT_INVALID; names the file and what is wrong with it.
    """
    document = document_of(folder, CONFIG)
    if document.get("model_type") in FAMILIES:
        _refuse_damage(folder)
        document = rewrite(folder, document)
    if "auto_map" in document:
        raise refused(CONFIG, "asks for code of the model's own (auto_map), which is not run")
    if "quantization_config" in document:
        raise refused(CONFIG, "is of quantised weights; start from those that it was quantised from")
    kind = document.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise refused(CONFIG, f"has the model_type {str(kind)[:60]!r}, which is no causal language model known here")
    shapes = _refuse_damage(folder)
    _told(architecture_of, document, CONFIG)
    _check_layers(document, shapes)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a configuration class says about values that it does not take
        raise refused(CONFIG, f"is not one of {kind}: {_short(error)}") from error
    if not getattr(config, "max_position_embeddings", None):
        raise refused(CONFIG, "has no max_position_embeddings")
    _check_weights(shapes, config)
    return config


def check_fit(document: Json, shapes: Shapes) -> None:
    """Compares weights with what config.json says, where it names a class that is known here to write or score text.

    Args:
        document: config.json, of a model type that transformers knows.
        shapes: of all tensors, by name.

    Raises:
        EngineError: CONTENT_INVALID, they do not fit.
    """
    kind, named = document["model_type"], document.get("architectures")
    known = (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind), MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(kind))
    # Quantised weights have other shapes than those that they stand for.
    if not isinstance(named, list) or not named or named[0] not in known or "quantization_config" in document:
        return
    _check_layers(document, shapes)
    try:
        config = CONFIG_MAPPING[kind].from_dict(document)
    except Exception as error:  # whatever a configuration class says about values that it does not take
        raise refused(CONFIG, f"is not one of {kind}: {_short(error)}") from error
    _check_weights({name: shape for name, shape in shapes.items() if not name.endswith(_COMPUTED)}, config)


def model_class(config: PreTrainedConfig) -> Any:
    """What loads a model of this configuration: one that writes text, or one that scores it."""
    return AutoModelForSequenceClassification if is_scorer(config) else AutoModelForCausalLM


def check_scorable(config: PreTrainedConfig) -> None:
    """A reward model is read back as a sequence classifier of its family, whose layers are under the same name.

    Raises:
        EngineError: CONTENT_INVALID, there is none.
    """
    known = config.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    if not known or empty_model(config).base_model_prefix != SCORED:
        raise refused(CONFIG, f"is of {config.model_type}, of which no reward model can be made here")


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model without memory for its weights.

    Raises:
        EngineError: CONTENT_INVALID, the configuration makes no model.
    """
    try:
        with torch.device("meta"):
            return model_class(config).from_config(config)
    except Exception as error:  # whatever a model class says about numbers that do not fit each other
        raise refused(CONFIG, f"makes no model: {_short(error)}") from error


def read_text(folder: Path, config: PreTrainedConfig) -> BaseText:
    """The tokenizer, as a server would load it, with the tokens that it puts before a prompt and that end an answer.

    Raises:
        EngineError: CONTENT_INVALID; names the file and what is wrong with it.
    """
    if not (folder / TOKENIZER).exists():
        raise refused(TOKENIZER, "is missing; AutoTokenizer.save_pretrained writes one")
    if (folder / TOKENIZER_CONFIG).exists() and "auto_map" in document_of(folder, TOKENIZER_CONFIG):
        raise refused(TOKENIZER_CONFIG, "asks for code of the tokenizer's own (auto_map), which is not run")
    for path, template in _templates(folder):
        if fault := template_fault(template):
            raise refused(path, f"has a chat template that cannot be used: {fault}")
    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer: Tokenizer = loaded.backend_tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        encoding = tokenizer.encode("a")
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise refused(TOKENIZER, f"cannot be loaded: {_short(error)}") from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= config.vocab_size:
        raise refused(TOKENIZER, f"has token {largest}, but the model knows {config.vocab_size} tokens")
    return BaseText(tokenizer, SpecialTokens(_opening(encoding), _end(loaded, config)))


def read_adapter(folder: Path) -> Adapter:
    """The adapter of a version that holds one.

    Raises:
        EngineError: CONTENT_INVALID; names the file and what is wrong with it.
    """
    adapter = _told(adapter_of, document_of(folder, ADAPTER_CONFIG), ADAPTER_CONFIG)
    _shapes(folder, ADAPTER_WEIGHTS)
    return adapter


def document_of(folder: Path, path: str) -> Json:
    """A JSON object of a model's folder.

    Raises:
        EngineError: CONTENT_INVALID, it is missing or none.
    """
    try:
        document = json.loads((folder / path).read_bytes())
    except FileNotFoundError:
        raise refused(path, "is missing") from None
    except (ValueError, RecursionError) as error:
        raise refused(path, "is not JSON") from error
    if not isinstance(document, dict):
        raise refused(path, "is no JSON object")
    return cast("Json", document)


def _told(rule: Callable[[Json], T], document: Json, path: str) -> T:
    """What a rule of the domain reads from a document, its refusal as one of the engine."""
    try:
        return rule(document)
    except DomainError as error:
        raise EngineError(error.reason, error.message, detail=path) from error


def _check_layers(document: Json, shapes: Shapes) -> None:
    """Some configurations write a list with an entry for each layer: before one is made, this bounds it."""
    layers = layers_of(document)
    if layers > len(shapes):
        raise refused(CONFIG, f"tells of {layers} layers; the files have {len(shapes)} tensors")


def _check_weights(shapes: Shapes, config: PreTrainedConfig) -> None:
    """Compares the headers of the weights with the configuration, before a worker takes memory for either."""
    parameters = dict(empty_model(config).named_parameters())
    for name, shape in shapes.items():
        parameter = parameters.get(name)
        if parameter is not None and list(parameter.shape) != shape:
            raise refused(CONFIG, f"wants {name} as {list(parameter.shape)}; the files have it as {shape}")
    wanted = sum(parameter.numel() for parameter in parameters.values())
    have = sum(torch.Size(shape).numel() for shape in shapes.values())
    if have < wanted:
        missing = sorted(parameters.keys() - shapes.keys())
        named = f", {missing[0]} among them" if missing else ""
        raise refused("weights", f"lack {wanted - have:,} of {wanted:,} parameters{named}")


def _refuse_damage(folder: Path) -> Shapes:
    """Shapes of all tensors of a complete model, by name."""
    if not (folder / INDEX).exists():
        return _shapes(folder, WEIGHTS)
    places = document_of(folder, INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise refused(INDEX, "has no weight_map")
    shapes: Shapes = {}
    for path in sorted({str(path) for path in places.values()}):
        if "/" in path or not path.endswith(".safetensors"):
            raise refused(INDEX, f"names {path[:60]!r}, which is no file of weights")
        shapes |= _shapes(folder, path)
    absent = sorted(places.keys() - shapes.keys())
    if absent:
        raise refused(INDEX, f"names the tensor {absent[0][:100]}, which is in none of its files")
    return shapes


def _shapes(folder: Path, path: str) -> Shapes:
    if not (folder / path).exists():
        raise refused(path, "is missing")
    try:
        with safe_open(folder / path, "pt") as file:
            names = [name for name in file.keys() if not name.endswith(_COMPUTED)]  # noqa: SIM118 - not a mapping
            return {name: list(file.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise refused(path, "is damaged, or not safetensors") from error


def _templates(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every chat template with the file that holds it."""
    if (folder / TEMPLATES[0]).exists():
        yield TEMPLATES[0], (folder / TEMPLATES[0]).read_text(errors="replace")
    for path in (TOKENIZER_CONFIG, TEMPLATES[1]):
        given = document_of(folder, path).get("chat_template") if (folder / path).exists() else None
        if isinstance(given, list):
            yield from ((path, each.get("template") if isinstance(each, dict) else each) for each in given)
        elif given is not None:
            yield path, given


def _opening(encoding: Encoding) -> tuple[int, ...]:
    """The tokens that come before every prompt."""
    mask: list[int] = encoding.special_tokens_mask
    return tuple(encoding.ids[: mask.index(0) if 0 in mask else len(mask)])


def _end(loaded: Any, config: PreTrainedConfig) -> int:
    """The token that ends an answer: the tokenizer's own, or the first that the configuration names."""
    named = config.eos_token_id
    end = loaded.eos_token_id
    if end is None:
        end = named[0] if isinstance(named, list) and named else named
    if not isinstance(end, int):
        raise refused(TOKENIZER_CONFIG, "names no eos_token, and config.json no eos_token_id")
    return end


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
