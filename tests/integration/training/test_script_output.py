"""What a script left: each file is looked at in a process with limits, and a checkpoint comes back as it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from libs.compute.context import EngineCancelled, EngineError, LocalContext
from services.training.domain.model_files import INDEX, BadModel
from services.training.engines import script_output
from services.training.engines.onnx_files import parameters
from services.training.engines.output_child import look
from services.training.engines.script_output import bring_folder, keep_folder, model_entries
from tests.integration.training.scripts import MIB, without_capabilities

Write = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}/blobs")


@pytest.fixture
def ctx(store: BlobStore) -> LocalContext:
    return LocalContext({}, blobs_write=store)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


@pytest.fixture
def write(output: Path) -> Write:
    """Writes a model of ONNX."""

    def keep(model: onnx.ModelProto, name: str = "m.onnx") -> Path:
        (output / name).write_bytes(model.SerializeToString())
        return output / name

    return keep


def refused(ctx: LocalContext, output: Path, memory: int = 600 * MIB) -> str:
    with pytest.raises(EngineError) as caught:
        model_entries(ctx, output, memory)
    assert caught.value.reason == "CONTENT_INVALID"
    return caught.value.message


def onnx_model(place: str, *, outside: bool = False, nodes: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    """A sum with a constant of six numbers, which is in this place; `outside`: and lies in another file; `nodes`: that
    stand beside the sum."""
    constant = helper.make_tensor("c", TensorProto.FLOAT, [2, 3], [1.0] * 6)
    if outside:
        constant.ClearField("float_data")
        constant.data_location = TensorProto.EXTERNAL
        constant.external_data.add(key="location", value="../../etc/passwd")
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])]
    added = [helper.make_node("Add", ["x", "c"], ["y"]), *(nodes or [])]
    model = helper.make_model(helper.make_graph(added[:1], "g", inputs, outputs))
    match place:
        case "graph":
            model.graph.initializer.append(constant)
            model.graph.node.extend(added[1:])
        case "branch":
            branch = helper.make_graph(added, "b", [], outputs, [constant])
            model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch))
        case "function":
            inside = [helper.make_node("Constant", [], ["c"], value=constant), *added]
            model.functions.append(helper.make_function("d", "f", ["x"], ["y"], inside, model.opset_import))
        case "training":
            model.training_info.add().initialization.initializer.append(constant)
            model.training_info[0].algorithm.node.extend(added)
        case "sparse":
            sparse = onnx.SparseTensorProto(values=constant, dims=[2, 3])
            model.graph.node.append(helper.make_node("Constant", [], ["s"], sparse_value=sparse))
    return model


@pytest.mark.parametrize("place", ["graph", "branch", "function", "training", "sparse"])
def test_onnx_with_another_file_is_refused(place: str, write: Write) -> None:
    assert parameters(write(onnx_model(place))) == 6
    with pytest.raises(BadModel, match=r"m.onnx: tensor 'c' lies in another file"):
        parameters(write(onnx_model(place, outside=True)))


@pytest.mark.parametrize(
    ("operator", "domain"),
    [
        # Its attribute `ep_cache_context` is native code, or the path of a file with it.
        ("EPContext", "com.microsoft"),
        ("EPContext", ""),
        ("PyOp", "ai.onnx.contrib"),
        ("PythonOp", "com.microsoft"),
        ("ATen", "org.pytorch.aten"),
        ("Snpe", "com.microsoft"),
        ("MyPlugin", "trt.plugins"),
        ("Mine", "my.operators"),
        ("NoSuchOperator", ""),
    ],
)
@pytest.mark.parametrize("place", ["graph", "branch", "function", "training"])
def test_onnx_with_an_operator_of_others_is_refused(place: str, operator: str, domain: str, write: Write) -> None:
    node = helper.make_node(operator, ["x"], ["z"], name="here", domain=domain, ep_cache_context="../../engine.bin")
    with pytest.raises(BadModel, match=f"m.onnx: node 'here' is '{operator}' of '{domain or 'ai.onnx'}'"):
        parameters(write(onnx_model(place, nodes=[node])))


def test_functions_of_a_model_are_its_own(write: Write) -> None:
    """But in no name of a runtime's, which would be what is run."""
    calls = [
        helper.make_node("f", ["x"], ["z"], domain="d"),
        helper.make_node("Normalizer", ["x"], ["w"], domain="ai.onnx.ml"),
    ]
    model = onnx_model("function")
    model.graph.node.extend(calls)
    assert parameters(write(model)) == 6
    for domain, name in (("com.microsoft", "Gelu"), ("d", "EPContext")):
        shadow = onnx_model("function")
        shadow.functions[0].domain, shadow.functions[0].name = domain, name
        shadow.graph.node.append(helper.make_node(name, ["x"], ["z"], domain=domain))
        with pytest.raises(BadModel, match=f"'{name}' of '{domain}'"):
            parameters(write(shadow))


@pytest.mark.parametrize(("files", "shape"), [(1, [2**31, 2**31, 2]), (2, [2**31, 2**31])])
def test_onnx_states_no_more_numbers_than_can_be_counted(
    files: int, shape: list[int], ctx: LocalContext, output: Path, write: Write
) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [TensorProto(name="c", data_type=TensorProto.FLOAT, dims=shape)],
    )
    for number in range(files):
        write(helper.make_model(graph), f"{number}.onnx")
    assert "it states more than 9,223,372,036,854,775,807 parameters" in refused(ctx, output)


HEADER = b'{"a":[' + b"[]," * 500_000 + b"1]}"
# Each byte of these asks its reader for tens. With the MiB of memory that are enough for other files (100 are, for a
# small one of ONNX), and how they fail where there is more; nothing: they do not.
BOMBS = {
    "m.json": (b"[" + b"[]," * 500_000 + b"1]", 40, ""),
    "m.onnx": (b"\x3a\x02\x0a\x00" * 400_000, 110, "m.onnx: node ''"),
    "m.safetensors": (len(HEADER).to_bytes(8, "little") + HEADER, 40, "m.safetensors: tensor 'a'"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_takes_no_more_memory_than_its_script_may(name: str, ctx: LocalContext, output: Path) -> None:
    content, memory, otherwise = BOMBS[name]
    (output / name).write_bytes(content)
    told = f"output/{name}: reading it takes more memory than the script may use (max_memory_bytes)"
    assert refused(ctx, output, memory * MIB) == told
    if otherwise:
        assert otherwise in refused(ctx, output, 4096 * MIB)
    else:
        assert model_entries(ctx, output, 4096 * MIB)[1] == 0


def test_the_file_that_ends_its_reader_is_named(
    ctx: LocalContext, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (output / "a.json").write_text("{}")
    monkeypatch.setattr(script_output.sys, "executable", "/bin/false")
    assert (
        refused(ctx, output)
        == "output/a.json: reading it ended its process, which may use as much memory as the script (max_memory_bytes)"
    )


def test_reading_has_an_end_and_can_be_cancelled(
    store: BlobStore, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (output / "a.json").write_text("{}")
    cancelled = LocalContext({}, blobs_write=store, cancel_when=lambda recorded: True)
    with pytest.raises(EngineCancelled):
        model_entries(cancelled, output, 600 * MIB)
    with pytest.raises(EngineCancelled):
        keep_folder(cancelled, output)
    monkeypatch.setattr(script_output, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(script_output, "_CHECK_SECONDS", 0)
    assert "takes more than 0 s" in refused(LocalContext({}, blobs_write=store), output)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"weight_map": {"a": "../../other/model.safetensors"}}, "which is no file of weights"),
        ({"weight_map": {"a": "other.safetensors"}}, "it names other.safetensors, which is missing"),
        ([], "it has no weight_map"),
    ],
)
def test_an_index_names_files_of_the_model(index: Any, says: str, output: Path) -> None:
    (output / INDEX).write_text(json.dumps(index))
    with pytest.raises(BadModel, match=says):
        look(output / INDEX, [INDEX, "model.safetensors"])
    (output / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert look(output / INDEX, [INDEX, "model.safetensors"]) == 0


def test_an_adapter_without_a_base_is_refused(ctx: LocalContext, output: Path) -> None:
    """Nobody could say which version it belongs on."""
    (output / "adapter_config.json").write_text("{}")
    assert "adapter_config.json: own code has no base model" in refused(ctx, output)


def test_a_checkpoint_comes_back_as_it_was(ctx: LocalContext, store: BlobStore, tmp_path: Path) -> None:
    """Whatever its files are called, and whatever their modes are."""
    files = {".a.part": b"1", "a": b"2", "n" * 255: b"3", "folder/x": b"4", "folder/.x.part": b"5"}
    for name, content in files.items():
        path = tmp_path / "kept" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0)
    digest, entries = without_capabilities(lambda: keep_folder(ctx, tmp_path / "kept", step=3))
    assert {entry["path"]: entry["size"] for entry in entries} == dict.fromkeys(files, 1)
    manifest = store.load_manifest_sync(digest)
    assert (manifest["kind"], manifest["step"], manifest["blobs"]) == ("training.checkpoint", 3, entries)
    bring_folder(store, digest, tmp_path / "brought")
    found = {str(path.relative_to(tmp_path / "brought")): path for path in (tmp_path / "brought").rglob("*")}
    assert {name: path.read_bytes() for name, path in found.items() if path.is_file()} == files


def test_a_checkpoint_that_was_changed_is_not_taken(ctx: LocalContext, store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "state").write_bytes(b"as it was")
    digest, (entry,) = keep_folder(ctx, tmp_path / "kept", step=1)
    (blob,) = (tmp_path / "blobs").rglob(f"{entry['sha256']}*")
    os.chmod(blob, 0o600)
    blob.write_bytes(b"not so   ")
    with pytest.raises(DomainError, match="is damaged"):
        bring_folder(store, digest, tmp_path / "brought")
    assert not [path for path in (tmp_path / "brought").rglob("*") if path.is_file()]
