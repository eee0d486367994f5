"""Comments of the protos. The descriptors inside the stubs have none, the image of `protos/generate.py` has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

_IMAGE = Path(__file__).resolve().parents[3] / "build" / "protos" / "argosy.binpb"
# Field numbers inside FileDescriptorProto, DescriptorProto and ServiceDescriptorProto, of which source locations are
# made.
_MESSAGES, _SERVICES, _FIELDS, _NESTED, _METHODS = 4, 6, 2, 3, 2


class Comments:
    """Full name of a message, field, service or method -> its comment."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    @classmethod
    def load(cls, image: Path = _IMAGE) -> Comments:
        """Reads an image; where there is none, nothing has a comment."""
        texts: dict[str, str] = {}
        if image.exists():
            for file in descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes()).file:
                if file.package.startswith("argosy."):
                    _read(file, texts)
        return cls(texts)

    def of(self, full_name: str) -> str:
        """The comment of a name; empty if it has none."""
        return self._texts.get(full_name, "")


def _read(file: descriptor_pb2.FileDescriptorProto, texts: dict[str, str]) -> None:
    for location in file.source_code_info.location:
        if location.leading_comments:
            name = _name(file, list(location.path))
            if name:
                texts[name] = " ".join(location.leading_comments.split())


def _name(file: descriptor_pb2.FileDescriptorProto, path: list[int]) -> str:
    """The full name that a source location points at; empty for what is neither message, field, service nor method."""
    if len(path) < 2 or path[0] not in (_MESSAGES, _SERVICES):
        return ""
    current: Any = file.message_type[path[1]] if path[0] == _MESSAGES else file.service[path[1]]
    in_service = path[0] == _SERVICES
    names, rest = [file.package, current.name], path[2:]
    while rest:
        kind, index, *rest = rest if len(rest) > 1 else (-1, 0)
        if in_service and kind == _METHODS:
            current = current.method[index]
        elif not in_service and kind == _NESTED:
            current = current.nested_type[index]
        elif not in_service and kind == _FIELDS:
            current = current.field[index]
        else:
            return ""
        names.append(current.name)
    return ".".join(names)
