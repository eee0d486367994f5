"""Compiles protos/ into what the code imports: Python stubs, a descriptor set and the image that buf reads.

Nothing it writes is committed. google/* comes from the wheel googleapis-common-protos, opentelemetry/* from
opentelemetry-proto and buf/validate from the descriptor inside the protovalidate wheel, so that no third party's
.proto file has to live in this repository.

    python protos/generate.py            # stubs into libs/argosy, image into build/protos
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "libs" / "argosy"
BUILD = ROOT / "build" / "protos"


def _validate_file() -> descriptor_pb2.FileDescriptorProto:
    """The descriptor of buf/validate/validate.proto as the protovalidate wheel carries it."""
    from protovalidate._gen.buf.validate import validate_pb

    return descriptor_pb2.FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary())


def _with_imports(file: FileDescriptor, into: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    for dependency in file.dependencies:
        _with_imports(dependency, into)
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    into[file.name] = proto


def dependencies() -> descriptor_pb2.FileDescriptorSet:
    """All files that ours import and that are not ours, dependencies first."""
    from google.api import annotations_pb2
    from google.protobuf import any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2

    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    wanted = (annotations_pb2, any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2)
    for module in wanted:
        _with_imports(module.DESCRIPTOR, files)
    validate = _validate_file()
    for name in validate.dependency:
        if name not in files:
            _with_imports(descriptor_pool.Default().FindFileByName(name), files)
    files[validate.name] = validate
    return descriptor_pb2.FileDescriptorSet(file=files.values())


def _protoc(*arguments: str) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"protoc failed:\n{done.stdout}{done.stderr}")


def main() -> None:
    """Writes stubs, `build/protos/argosy.binpb` (with imports and comments) and `build/protos/deps.binpb`."""
    BUILD.mkdir(parents=True, exist_ok=True)
    deps = BUILD / "deps.binpb"
    deps.write_bytes(dependencies().SerializeToString())
    ours = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("argosy/**/*.proto"))

    staging = BUILD / "python"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    sources = ("-Iprotos", f"--descriptor_set_in={deps}")
    outputs = (f"--python_out={staging}", f"--pyi_out={staging}")
    _protoc(*sources, *outputs, f"--grpc_python_out={staging}", *ours)
    _protoc(f"--descriptor_set_in={deps}", *outputs, "buf/validate/validate.proto")
    image = BUILD / "argosy.binpb"
    _protoc(*sources, "--include_imports", "--include_source_info", f"--descriptor_set_out={image}", *ours)

    for old in STUBS.glob("*/v1"):
        shutil.rmtree(old)
    shutil.rmtree(STUBS / "buf", ignore_errors=True)
    for path in sorted(staging.rglob("*_pb2*.py*")):
        relative = path.relative_to(staging)
        target = STUBS / (relative.relative_to("argosy") if relative.parts[0] == "argosy" else relative)
        target.parent.mkdir(parents=True, exist_ok=True)
        # The stubs of buf/validate live inside our package, so that no top-level `buf` is needed.
        text = re.sub(r"^(from|import) buf\.", r"\1 argosy.buf.", path.read_text(), flags=re.MULTILINE)
        target.write_text(text)
    for folder in {path.parent for path in STUBS.rglob("*_pb2.py")}:
        while folder != STUBS:
            (folder / "__init__.py").touch()
            folder = folder.parent
    shutil.rmtree(staging)


if __name__ == "__main__":
    main()
