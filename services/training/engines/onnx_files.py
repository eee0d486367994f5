"""What is in an ONNX file: its numbers, and that it asks for nothing that is not in it.

Source: https://onnx.ai/onnx/repo-docs/IR.html. Operators of other domains than ONNX's own are what a runtime brings
along or loads from a library: they can hold native code or the path of a file (EPContext of ONNX Runtime has both).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message

from services.training.domain.model_files import MOST_PARAMETERS, BadModel

# The format's own limit of a message.
_MOST_BYTES = (2 << 30) - 1
# Runtimes have operators of their own there, and this one in any domain: a function of such a name may not be what is
# run.
_RUNTIMES, _COMPILED = ("com.microsoft", "com.ms", "ai.onnx.contrib", "org.pytorch", "trt"), "EPContext"
_SHOWN = 60


def parameters(path: Path) -> int:
    """Numbers in all constants of a model.

    Raises:
        BadModel: It is no model, names other files, or has operators that are not ONNX's nor its own.
        MemoryError: It does not fit.
    """
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise BadModel(f"{path.name}: it has {size:,} bytes, more than a file of this kind may have")
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        # So it is said when there was no memory for what was read.
        if "alloc" in str(error) or "memory" in str(error):
            raise MemoryError from None
        raise BadModel(f"{path.name}: it is not ONNX") from None
    if not model.graph.node:
        raise BadModel(f"{path.name}: it is not ONNX, or does nothing")
    own = {(function.domain, function.name) for function in model.functions}
    count = 0
    for part in _parts(model):
        if isinstance(part, onnx.NodeProto):
            _require_known(path.name, part, own)
        if isinstance(part, onnx.TensorProto):
            count = _counted(path.name, count + _elements(path.name, part))
    return count


def _require_known(name: str, node: onnx.NodeProto, own: set[tuple[str, str]]) -> None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    foreign = node.op_type == _COMPILED or f"{domain}.".startswith(tuple(f"{runtime}." for runtime in _RUNTIMES))
    if foreign or not (onnx.defs.has(node.op_type, domain) or (node.domain, node.op_type) in own):
        operator, place = node.op_type[:_SHOWN], node.domain[:_SHOWN] or "ai.onnx"
        raise BadModel(
            f"{name}: node {node.name[:_SHOWN]!r} is {operator!r} of {place!r}; operators are those of ONNX or "
            "functions of the model, as others can refer to files or native code"
        )


def _elements(name: str, tensor: onnx.TensorProto) -> int:
    # Such a tensor lies in another file, which could be any file of the machine that reads it.
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise BadModel(f"{name}: tensor {tensor.name[:_SHOWN]!r} lies in another file; write all into one")
    elements = 1
    for dimension in tensor.dims:
        elements = _counted(name, elements * max(0, dimension))
    return elements


def _counted(name: str, parameters: int) -> int:
    """As many as can be. Raises BadModel."""
    if parameters > MOST_PARAMETERS:
        raise BadModel(f"{name}: it states more than {MOST_PARAMETERS:,} parameters")
    return parameters


def _parts(model: onnx.ModelProto) -> Iterator[Message]:
    """All messages in it: graphs, functions, what it is trained with, and attributes of nodes."""
    waiting: list[Message] = [model]
    while waiting:
        each = waiting.pop()
        yield each
        for field, value in each.ListFields():
            if field.message_type is not None:
                waiting += [value] if isinstance(value, Message) else value
