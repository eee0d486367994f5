"""What a replica refuses before it loads anything, and how messages become a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from argosy.deploy.v1 import inference_service_pb2 as pb

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from services.deploy.engines.chat import render_chat
from services.deploy.engines.environment import prepare_environment
from services.deploy.engines.errors import ModelRefused, RequestRefused, ResourcesMissing
from services.deploy.engines.inference import _Tally
from services.deploy.engines.model_files import check_manifest, materialise_model
from services.deploy.engines.text_engine import EngineOptions, Piece, TextEngine

CONFIG = json.dumps({"model_type": "llama"}).encode()


def stored(tmp_path: Path, files: dict[str, bytes]) -> tuple[BlobStore, str, str]:
    """A store with a model of these files: the store, the manifest's digest, a grant."""
    store = BlobStore(f"file://{tmp_path}/blobs")
    entries = [{"path": path, "sha256": store.put_sync(content).sha256} for path, content in files.items()]
    digest = store.commit_sync({"blobs": entries})
    return store, digest, store.grant_sync(digest, "replica", 60)


def test_files_are_written_and_what_was_there_goes(tmp_path: Path) -> None:
    _, digest, grant = stored(tmp_path, {"config.json": CONFIG, "model.safetensors": b"weights"})
    folder = tmp_path / "replica"
    folder.mkdir()
    (folder / "left.py").write_text("import os")
    materialise_model(grant, digest, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": CONFIG, "pytorch_model.bin": b"pickle"},
        {"config.json": CONFIG, "model.safetensors": b"", "modeling.py": b"import os"},
        {"config.json": CONFIG, "model.safetensors": b"", "../evil.json": b"{}"},
        {"config.json": CONFIG, "/etc/evil.json": b"{}", "model.safetensors": b""},
        {"config.json": CONFIG},
        {"model.safetensors": b""},
        {"config.json": b"not json", "model.safetensors": b""},
        {"config.json": json.dumps({"auto_map": {"AutoModel": "m.M"}}).encode(), "model.safetensors": b""},
    ],
)
def test_a_model_that_could_run_code_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    _, digest, grant = stored(tmp_path, files)
    with pytest.raises(ModelRefused):
        materialise_model(grant, digest, tmp_path / "replica")
    assert not list(tmp_path.rglob("evil.json"))


def test_damaged_weights_are_noticed(tmp_path: Path) -> None:
    store, digest, grant = stored(tmp_path, {"config.json": CONFIG, "model.safetensors": b"weights"})
    sha256 = check_manifest(store.load_manifest_sync(digest))["model.safetensors"]
    (blob,) = (tmp_path / "blobs").rglob(f"{sha256}*")
    blob.chmod(0o600)
    blob.write_bytes(b"WEIGHTS")
    with pytest.raises(DomainError):
        materialise_model(grant, digest, tmp_path / "replica")


def test_gpus_are_refused_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.deploy.engines.text_engine.cuda_present", lambda: False)
    with pytest.raises(ResourcesMissing, match="2 GPUs"):
        TextEngine.start(tmp_path, EngineOptions(gpus=2))


def test_the_environment_keeps_engines_quiet_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"VLLM_CPU_KVCACHE_SPACE": "4", "CUDA_VISIBLE_DEVICES": ""}
    monkeypatch.setattr("os.environ", environment)
    prepare_environment(cuda=False, cpus=0.5)
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["VLLM_NO_USAGE_STATS"] == environment["HF_HUB_OFFLINE"] == "1"
    assert environment["TORCHDYNAMO_DISABLE"] == "1"


def say(role: str, content: str, **fields: Any) -> pb.ChatMessage:
    return pb.ChatMessage(role=role, content=content, **fields)


def test_without_a_template_one_message_is_the_prompt() -> None:
    plain = SimpleNamespace(chat_template=None)
    assert render_chat(plain, [say("user", "Which package?")], []) == ("Which package?", True)
    talk = [say("system", "Be brief."), say("user", "Hi"), say("assistant", "Hello"), say("user", "Bye")]
    assert render_chat(plain, talk, [])[0] == "System: Be brief.\nUser: Hi\nAssistant: Hello\nUser: Bye\nAssistant:"


def test_a_template_gets_messages_and_tools() -> None:
    seen: dict[str, Any] = {}

    def template(conversation: Any, **options: Any) -> str:
        seen.update(options, conversation=conversation)
        return "prompt"

    tokenizer = SimpleNamespace(chat_template="x", apply_chat_template=template)
    messages = [say("assistant", "", tool_calls_json='[{"id": "1"}]'), say("tool", "42", tool_call_id="1")]
    assert render_chat(tokenizer, messages, ['{"type": "function"}']) == ("prompt", False)
    assert seen["tools"] == [{"type": "function"}]
    assert seen["conversation"][0]["tool_calls"] == [{"id": "1"}]
    assert seen["conversation"][1]["tool_call_id"] == "1"


def test_a_template_that_raises_names_the_messages() -> None:
    def template(*_: Any, **__: Any) -> str:
        raise ValueError("roles must alternate")

    tokenizer = SimpleNamespace(chat_template="x", apply_chat_template=template)
    with pytest.raises(RequestRefused) as refused:
        render_chat(tokenizer, [say("user", "a")], [])
    assert refused.value.field == "messages"
    with pytest.raises(RequestRefused) as refused:
        render_chat(tokenizer, [say("user", "a")], ["{}", "[1"])
    assert refused.value.field == "tools_json[1]"


def test_usage_comes_once_and_counts_a_prompt_once() -> None:
    request = pb.GenerateRequest(prompts=["a", "b"], sampling=pb.SamplingParameters(n=2))
    tally = _Tally(request)
    pieces = [Piece(index=i, text="t", finish_reason="stop", prompt_tokens=5, completion_tokens=3) for i in range(4)]
    responses = [tally.add(piece) for piece in pieces]
    assert [response.HasField("usage") for response in responses] == [False, False, False, True]
    assert (responses[-1].usage.prompt_tokens, responses[-1].usage.completion_tokens) == (10, 12)
