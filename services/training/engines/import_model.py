"""Import of a model from outside: its files are stored, checked one by one, and become one manifest.

Nothing in them is run: weights are safetensors, whose header is checked here; whether they fit config.json is asked, a
tokenizer loaded and a chat template rendered in a process of its own with limits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from libs.common.blobs import Blob, BlobStore
from libs.compute.context import EngineContext, EngineError
from libs.compute.scratch import scratch_folder
from services.training.domain import model_files
from services.training.domain.model_files import BadModel, Config
from services.training.domain.safetensors import LENGTH_BYTES, BadWeights, Header, header_length, read_header
from services.training.engines.model_limits import require_fit, require_template, require_tokenizer
from services.training.engines.model_sources import Source, SourceFile, opened, small_text

Json = dict[str, Any]

_REPORT_SECONDS = 0.5
# Of the work; the rest is checking.
_COPY_SHARE = 0.9
_MOST_LEFT_OUT = 50
_MOST_TEMPLATES = 16
# Of files that are parsed. The largest vocabularies of today make 35 MB of tokenizer.json.
_MOST_TEXT = 64 << 20
_MOST_CONFIG = 4 << 20
_CODE_FREE = (
    model_files.TOKENIZER_CONFIG,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
)


def run(ctx: EngineContext) -> Json:
    """Imports one model.

    The spec has one of `uploads` (`name`, `file_name`, `size`, `manifest`, `grant` each), `folder` with `open_folders`,
    and `hub` (`url`, `id`, `revision`, `networks`), and `max_bytes` of all files together.

    Raises:
        EngineError: CONTENT_INVALID that names the file and what is wrong with it; TOO_LARGE.
    """
    try:
        with opened(ctx) as source:
            files = _copy(ctx, source)
            for path in source.left_out[:_MOST_LEFT_OUT]:
                ctx.log(f"{path[:200]!r} is left out: no model needs it")
            origin = source.origin
        ctx.progress(_COPY_SHARE, "checking")
        files = _known(ctx, files)
        facts = check(ctx.blobs_write, files)
    except (BadModel, BadWeights) as error:
        raise EngineError("CONTENT_INVALID", str(error), detail=str(error)) from error
    if model_files.TOKENIZER not in facts.files:
        ctx.log(f"it has no {model_files.TOKENIZER}: no training can start from it", "WARNING")
    entries = [blob.entry(path) for path, blob in sorted(facts.files.items())]
    digest = ctx.blobs_write.commit_sync({"kind": "training.model", "blobs": entries})
    ctx.progress(1.0, f"{facts.elements:,} parameters in {len(entries)} files")
    return {
        "manifest_digest": digest,
        "files": entries,
        "parameter_count": facts.elements,
        "architecture": facts.config.model_type,
        "context_length": facts.config.context_length,
        "licence": facts.licence,
        "task": facts.config.task,
        "origin": origin,
        "left_out": len(source.left_out),
    }


def _copy(ctx: EngineContext, source: Source) -> dict[str, Blob]:
    """The kept files in the store."""
    files: dict[str, Blob] = {}
    done, reported = 0, 0.0
    for file in source.files:
        if file.path in files:
            raise BadModel(f"{file.path}: it is there twice")
        with ctx.blobs_write.writer() as writer:
            for chunk in file.chunks():
                writer.write(chunk)
                done += len(chunk)
                if done > ctx.spec["max_bytes"]:
                    limit = ctx.spec["max_bytes"]
                    raise EngineError("TOO_LARGE", f"the model has more than {limit:,} bytes", limit=str(limit))
                ctx.stop_if_cancelled()
                if time.monotonic() - reported > _REPORT_SECONDS:
                    reported = time.monotonic()
                    _report(ctx, file, done, source.total)
            files[file.path] = writer.finish()
    return files


def _known(ctx: EngineContext, files: dict[str, Blob]) -> dict[str, Blob]:
    """The files; those of a family that asks for code of its own as of one that needs none."""
    store = ctx.blobs_write
    config = _json(store, files, model_files.CONFIG) if model_files.CONFIG in files else {}
    if config.get("model_type") in CONFIG_MAPPING_NAMES:
        return files
    # Torch is for these alone.
    from services.training.engines.families import FAMILIES, rewrite

    if config.get("model_type") not in FAMILIES:
        return files
    kept, _ = _weights(store, files)
    documents = (model_files.CONFIG, model_files.INDEX, model_files.TOKENIZER_CONFIG, model_files.TOKENIZER)
    with scratch_folder("argosy-import-") as folder:
        for path in [path for path in kept if path in documents or path.endswith(model_files.WEIGHTS)]:
            if path.endswith(".json"):
                _json(store, files, path, _MOST_TEXT)
            store.export_sync(kept[path].sha256, folder / path)
        known = rewrite(folder, config)
        ctx.log(f"{config['model_type']} is written as {known['model_type']}, whose code is here")
        return kept | {path.name: store.put_sync(path) for path in folder.iterdir()}


def _report(ctx: EngineContext, file: SourceFile, done: int, total: int) -> None:
    share = min(1.0, done / total) if total else 0.5
    ctx.progress(_COPY_SHARE * share, f"{done / 1e6:,.1f} MB, now {file.path}", bytes=done)


@dataclass(frozen=True)
class Facts:
    """What the files say about the model.

    Attributes:
        files: those that belong to it.
        elements: of all tensors together.
    """

    files: dict[str, Blob]
    config: Config
    elements: int
    licence: str


def check(store: BlobStore, files: dict[str, Blob]) -> Facts:
    """Checks the files of a model.

    Args:
        store: has them.
        files: by path.

    Raises:
        BadModel, BadWeights: What is wrong, naming the file.
    """
    if model_files.CONFIG not in files:
        raise BadModel(f"{model_files.CONFIG}: the model has none")
    known = frozenset(CONFIG_MAPPING_NAMES)
    config = model_files.read_config(_json(store, files, model_files.CONFIG), known)
    documents = {path: _json(store, files, path) for path in _CODE_FREE if path in files}
    for path, document in documents.items():
        model_files.refuse_remote_code(path, document)
    kept, headers = _weights(store, files)
    require_fit(_json(store, files, model_files.CONFIG), {k: v for each in headers for k, v in each.shapes.items()})
    _tokenizer(store, files, documents)
    licence = model_files.licence_of(_text(store, files, model_files.README)) if model_files.README in files else ""
    return Facts(kept, config, sum(header.elements for header in headers), licence)


def _weights(store: BlobStore, files: dict[str, Blob]) -> tuple[dict[str, Blob], list[Header]]:
    """The files without weights that no index names, and the headers of the others."""
    found = sorted(path for path in files if path.endswith(model_files.WEIGHTS))
    if model_files.INDEX in files:
        places = model_files.shards(_json(store, files, model_files.INDEX, _MOST_TEXT))
        wanted = sorted(set(places.values()))
        for path in wanted:
            if path not in files:
                raise BadModel(f"{model_files.INDEX}: it names {path}, which is missing")
    elif "model.safetensors" in found:
        places, wanted = {}, ["model.safetensors"]
    elif found:
        raise BadModel(f"{found[0]}: weights are in model.safetensors, or in files that {model_files.INDEX} names")
    else:
        raise BadModel("model.safetensors: the model has no weights in this format")
    headers = {path: _header(store, path, files[path]) for path in wanted}
    for tensor, path in places.items():
        if tensor not in headers[path].shapes:
            raise BadModel(f"{path}: it lacks the tensor {tensor[:100]!r}, which {model_files.INDEX} says that it has")
    kept = {path: blob for path, blob in files.items() if path in wanted or not path.endswith(model_files.WEIGHTS)}
    return kept, list(headers.values())


def _header(store: BlobStore, path: str, blob: Blob) -> Header:
    try:
        length = header_length(store.read_sync(blob.sha256, 0, LENGTH_BYTES), blob.size)
        return read_header(store.read_sync(blob.sha256, LENGTH_BYTES, length), blob.size)
    except BadWeights as error:
        raise BadModel(f"{path}: {error}") from error


def _tokenizer(store: BlobStore, files: dict[str, Blob], documents: dict[str, Json]) -> None:
    if model_files.TOKENIZER in files:
        text = _text(store, files, model_files.TOKENIZER)
        model_files.refuse_remote_code(model_files.TOKENIZER, model_files.parse_json(model_files.TOKENIZER, text))
        require_tokenizer(model_files.TOKENIZER, text)
    texts = {path: _text(store, files, path) for path in ("chat_template.jinja",) if path in files}
    templates = model_files.templates(documents, texts)
    if len(templates) > _MOST_TEMPLATES:
        raise BadModel(f"{model_files.TOKENIZER_CONFIG}: {len(templates)} chat templates, at most {_MOST_TEMPLATES}")
    for name, template in templates.items():
        require_template(name, template)


def _json(store: BlobStore, files: dict[str, Blob], path: str, most: int = _MOST_CONFIG) -> Json:
    return model_files.parse_json(path, small_text(store, path, files[path].sha256, files[path].size, most))


def _text(store: BlobStore, files: dict[str, Blob], path: str) -> str:
    return small_text(store, path, files[path].sha256, files[path].size, _MOST_TEXT)
