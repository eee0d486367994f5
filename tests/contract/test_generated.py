"""What is generated is what the protos say: nobody tests against stubs of yesterday."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from tests.contract.protos import IMAGE, ROOT, files

PROTOS = ROOT / "protos"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pb2.FileDescriptorSet:
    """The protos as they are now."""
    image: Path = tmp_path_factory.mktemp("protos") / "image.binpb"
    ours = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("argosy/**/*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iprotos"]
    command += [f"--descriptor_set_in={ROOT / 'build' / 'protos' / 'deps.binpb'}"]
    command += ["--include_imports", "--include_source_info", f"--descriptor_set_out={image}", *ours]
    subprocess.run(command, cwd=ROOT, check=True)
    return descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())


def test_image_is_up_to_date(compiled: descriptor_pb2.FileDescriptorSet) -> None:
    image = descriptor_pb2.FileDescriptorSet.FromString(IMAGE.read_bytes())
    stale = [new.name for new in compiled.file if new not in image.file]
    assert not stale, f"run protos/generate.py: {stale}"
    assert len(image.file) == len(compiled.file)


def test_stubs_are_up_to_date(compiled: descriptor_pb2.FileDescriptorSet) -> None:
    now = {file.name: file for file in compiled.file}
    for file in files():
        module = importlib.import_module(file.name.removesuffix(".proto").replace("/", ".") + "_pb2")
        stub = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(stub)
        # Compared as protoc would write both for Python: without comments and without the derived JSON names.
        assert _bare(stub) == _bare(now[file.name]), file.name


def _bare(file: descriptor_pb2.FileDescriptorProto) -> bytes:
    bare = descriptor_pb2.FileDescriptorProto()
    bare.CopyFrom(file)
    bare.ClearField("source_code_info")

    def strip(messages: Iterable[descriptor_pb2.DescriptorProto]) -> None:
        for message in messages:
            for field in (*message.field, *message.extension):
                field.ClearField("json_name")
            strip(message.nested_type)

    strip(bare.message_type)
    for field in bare.extension:
        field.ClearField("json_name")
    return bare.SerializeToString(deterministic=True)


def test_nothing_generated_is_committed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    generated = [name for name in tracked if name.endswith(("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", ".binpb"))]
    assert [name for name in generated if name != "protos/baseline.binpb"] == []
