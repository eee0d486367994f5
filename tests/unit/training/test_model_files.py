"""What the files of an outside model must not be, each with the error that names it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.training.domain.model_files import (
    BadModel,
    common_folder,
    fate,
    licence_of,
    parse_json,
    read_config,
    refuse_remote_code,
    shards,
    templates,
)
from services.training.domain.safetensors import BadWeights, header_length, read_header

KNOWN = frozenset({"llama", "qwen2"})


def header(entries: dict[str, Any] | str) -> bytes:
    return (entries if isinstance(entries, str) else json.dumps(entries)).encode()


def tensor(begin: int = 0, end: int = 8, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def read(entries: dict[str, Any] | str, data: int = 8) -> Any:
    content = header(entries)
    return read_header(content, 8 + len(content) + data)


def test_a_sound_header_gives_shapes_and_elements() -> None:
    found = read(
        {"__metadata__": {"format": "pt"}, "b": tensor(8, 16, (1, 2)), "a": tensor(), "c": tensor(16, 16, (0,))}, 16
    )
    assert list(found.shapes) == ["a", "b", "c"]
    assert found.shapes["b"] == [1, 2]
    assert found.elements == 4
    assert read({"a": tensor(0, 1, (2,), "F4")}, 1).elements == 2


@pytest.mark.parametrize(
    ("entries", "data", "fault"),
    [
        ({"a": tensor(), "b": tensor(4, 12)}, 12, "overlaps"),
        ({"a": tensor(), "b": tensor(16, 24)}, 24, "hole"),
        ({"a": tensor(8, 16)}, 16, "hole"),
        ({"a": tensor()}, 4, "cut off"),
        ({"a": tensor()}, 12, "behind its tensors"),
        ({"a": tensor(shape=(3,))}, 8, "its shape and type need others"),
        ({"a": tensor(dtype="PICKLE")}, 8, "unknown type 'PICKLE'"),
        ({"a": tensor(dtype=["F32"])}, 8, "unknown type"),
        ({"a": tensor(shape=(-2,))}, 8, "no shape"),
        ({"a": tensor(shape=(True,))}, 8, "no shape"),
        ({"a": tensor(shape=(2.0,))}, 8, "no shape"),
        ({"a": tensor(shape=(2**62, 2**62))}, 8, "larger than any file"),
        ({"a": tensor(shape=(1,) * 40)}, 8, "no shape"),
        ({"a": tensor(8, 0)}, 8, "no offsets"),
        ({"a": {**tensor(), "more": 1}}, 8, "just dtype"),
        ({"a": "tensor"}, 8, "just dtype"),
        ({"__metadata__": {"x": 1}, "a": tensor()}, 8, "__metadata__"),
        ({}, 0, "no tensors"),
        ('{"a": 1, "a": 2}', 0, "twice"),
        ('{"a": NaN}', 0, "NaN"),
        ("[]", 0, "does not begin"),
        ("{" * 10, 0, "not JSON"),
        ('{"a":' * 100_000, 0, "not JSON"),
    ],
)
def test_a_hostile_header_is_refused(entries: dict[str, Any] | str, data: int, fault: str) -> None:
    with pytest.raises(BadWeights, match=fault):
        read(entries, data)


@pytest.mark.parametrize(
    ("start", "size", "fault"),
    [
        (b"\x01", 1, "shorter"),
        ((1 << 40).to_bytes(8, "little"), 1 << 50, "at most"),
        ((100).to_bytes(8, "little"), 50, "cut off"),
    ],
)
def test_the_length_of_a_header_is_believed_only_as_far_as_the_file_goes(start: bytes, size: int, fault: str) -> None:
    with pytest.raises(BadWeights, match=fault):
        header_length(start, size)


@pytest.mark.parametrize(
    "path",
    [
        "pytorch_model.bin",
        "model.pt",
        "x/weights.PTH",
        "data.pkl",
        "last.ckpt",
        "arrays.npz",
        "modeling_llama.py",
        "a.so",
    ],
)
def test_pickles_and_code_are_refused_by_their_name(path: str) -> None:
    with pytest.raises(BadModel) as caught:
        fate(path)
    assert path in str(caught.value)


def test_what_no_model_needs_is_left_out() -> None:
    assert [fate(path) for path in ("config.json", "model-00001-of-00002.safetensors", "README.md")] == [True] * 3
    assert [fate(path) for path in ("notes.doc", "onnx/model.safetensors", ".gitattributes")] == [False] * 3
    assert common_folder(["m/config.json", "m/x/y"]) == "m/"
    assert common_folder(["m/config.json", "other"]) == ""


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({}, "no model_type"),
        ({"model_type": 3}, "no model_type"),
        ({"model_type": "alien"}, "'alien' is not known"),
        ({"model_type": "llama", "auto_map": {"AutoModel": "modeling.M"}}, "auto_map"),
        ({"model_type": "llama", "text_config": {"auto_map": {"AutoConfig": "c.C"}}}, "auto_map"),
        ({"model_type": "llama", "parts": [{"trust_remote_code": True}]}, "trust_remote_code"),
    ],
)
def test_a_config_that_cannot_be_taken_is_refused(config: dict[str, Any], fault: str) -> None:
    with pytest.raises(BadModel, match=fault):
        read_config(config, KNOWN)


def test_a_config_tells_family_and_context() -> None:
    assert read_config({"model_type": "qwen2", "max_position_embeddings": 512}, KNOWN).context_length == 512
    assert read_config({"model_type": "llama", "text_config": {"n_positions": 64}}, KNOWN).context_length == 64
    assert read_config({"model_type": "llama", "max_position_embeddings": -1}, KNOWN).context_length == 0


def test_other_files_are_read_with_the_same_care() -> None:
    for text in ("[]", "{", '{"a":' * 100_000):
        with pytest.raises(BadModel, match="config"):
            parse_json("config.json", text)
    for index in ({}, {"weight_map": []}, {"weight_map": {"a": "../x.safetensors"}}, {"weight_map": {"a": "x.bin"}}):
        with pytest.raises(BadModel, match="index"):
            shards(index)
    with pytest.raises(BadModel, match="no template"):
        templates({"tokenizer_config.json": {"chat_template": [{"name": "x"}]}}, {})
    refuse_remote_code("x", {"auto_map": None})


def test_templates_are_called_by_their_place() -> None:
    documents = {"tokenizer_config.json": {"chat_template": [{"name": "tool_use", "template": "t"}]}}
    found = templates(documents, {"chat_template.jinja": "j"})
    assert found == {"tokenizer_config.json chat_template tool_use": "t", "chat_template.jinja": "j"}


def test_the_licence_is_that_of_the_front_matter() -> None:
    assert licence_of("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n") == "apache-2.0"
    assert licence_of('---\nlicense: "mit"\n---\n') == "mit"
    assert licence_of("# Model\nlicense: mit\n") == ""
