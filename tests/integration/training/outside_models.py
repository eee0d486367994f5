"""Models as strangers send them: sound ones, and archives of whatever a test wants."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from typing import Any

from tokenizers import Tokenizer, models

TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] | trim }}{{ eos_token }}{% endfor %}"


def weights(tensors: dict[str, int], **header: Any) -> bytes:
    """Safetensors with tensors of so many 32-bit numbers."""
    entries: dict[str, Any] = dict(header)
    at = 0
    for name, count in tensors.items():
        entries[name] = {"dtype": "F32", "shape": [count], "data_offsets": [at, at + 4 * count]}
        at += 4 * count
    content = json.dumps(entries).encode()
    return len(content).to_bytes(8, "little") + content + bytes(at)


def tokenizer() -> bytes:
    return Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>")).to_str().encode()


def model(**changes: bytes | dict[str, Any] | None) -> dict[str, bytes]:
    """The files of a sound model; a change is a file's bytes or JSON by its name, None takes it away."""
    files: dict[str, Any] = {
        "config.json": {"model_type": "llama", "max_position_embeddings": 64},
        "model.safetensors": weights({"a": 6, "b": 4}),
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": {"chat_template": TEMPLATE},
        "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
        "notes.doc": b"left out",
    }
    files |= changes
    return {
        name: content if isinstance(content, bytes) else json.dumps(content).encode()
        for name, content in files.items()
        if content is not None
    }


def zipped(files: dict[str, bytes], folder: str = "model/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{folder}{name}", content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w:gz", *, link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo("config.json")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry)
    return buffer.getvalue()
