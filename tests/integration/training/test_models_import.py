"""Import of models from outside: what is taken, and every hostile file that is not."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from argosy.training.v1 import model_registry_service_pb2 as pb
from argosy.training.v1 import model_service_pb2, training_pb2
from argosy.training.v1.outside_run_service_pb2 import CreateOutsideRunRequest
from argosy.training.v1.run_artifact_service_pb2 import AppendRunArtifactRequest
from argosy.training.v1.training_service_pb2 import CreateTrainingRequest
from safetensors.torch import save
from transformers import LlamaConfig, LlamaForCausalLM

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from libs.common.tasks import store as tasks
from libs.compute.context import EngineError, LocalContext, load_entrypoint
from services.training.engines import model_limits
from services.training.engines.import_model import run
from services.training.jobs.import_model import ImportTasks
from tests.integration.training.conftest import training_service
from tests.integration.training.outside_models import model, tarred, tokenizer, weights, zipped
from tests.integration.training.peers import PROJECT, Caller, FakeDataset, refusal
from tests.integration.training.versions import app


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}/blobs")


def imported(store: BlobStore, *uploads: tuple[str, bytes], **spec: Any) -> dict[str, Any]:
    """What the engine makes of uploads."""
    given: list[dict[str, Any]] = []
    for number, (file_name, content) in enumerate(uploads):
        blob = store.put_sync(content)
        manifest = store.commit_sync({"blobs": [{"sha256": blob.sha256, "size": blob.size}]})
        name = f"orgs/acme/uploads/u{number}"
        given.append({"name": name, "file_name": file_name, "size": blob.size, "manifest": manifest, "grant": ""})
    ctx = LocalContext({"uploads": given, "max_bytes": 10_000_000, **spec}, blobs_write=store, blobs_read=store)
    return run(ctx)


def refused(store: BlobStore, *uploads: tuple[str, bytes], **spec: Any) -> str:
    """The message with which the engine refuses."""
    with pytest.raises(EngineError) as caught:
        imported(store, *uploads, **spec)
    assert caught.value.reason in ("CONTENT_INVALID", "TOO_LARGE")
    return caught.value.message


def test_a_sound_model_comes_in_by_every_way(store: BlobStore, tmp_path: Path) -> None:
    files = model()
    folder = tmp_path / "open" / "model"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    kept = sorted(name for name in files if name != "notes.doc")
    made = [
        imported(store, ("model.zip", zipped(files))),
        imported(store, ("model.tar.gz", tarred(files))),
        imported(store, *files.items()),
        imported(store, folder=str(folder), open_folders=[str(tmp_path / "open")]),
    ]
    assert {each["manifest_digest"] for each in made} == {made[0]["manifest_digest"]}
    assert [file["path"] for file in made[0]["files"]] == kept
    facts = [made[0][name] for name in ("parameter_count", "architecture", "context_length", "licence", "left_out")]
    assert facts == [10, "llama", 64, "apache-2.0", 1]
    assert made[3]["origin"] == f"folder {folder}"


def test_a_model_without_a_tokenizer_comes_in_with_a_warning(store: BlobStore, tmp_path: Path) -> None:
    for name, content in model(**{"tokenizer.json": None}).items():
        (tmp_path / name).write_bytes(content)
    spec = {"folder": str(tmp_path), "open_folders": [str(tmp_path)], "max_bytes": 10_000_000}
    ctx = LocalContext(spec, blobs_write=store)
    assert run(ctx)["parameter_count"] == 10
    assert ("WARNING", "it has no tokenizer.json: no training can start from it") in ctx.recorded.logs


def test_shards_are_those_that_the_index_names(store: BlobStore) -> None:
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    parts = {"part-1.safetensors": weights({"a": 6}), "part-2.safetensors": weights({"b": 4})}
    files = model(**{"model.safetensors": weights({"c": 99}), "model.safetensors.index.json": index, **parts})
    made = imported(store, ("m.zip", zipped(files)))
    assert made["parameter_count"] == 10
    assert "model.safetensors" not in [file["path"] for file in made["files"]]
    del files["part-2.safetensors"]
    assert "part-2.safetensors, which is missing" in refused(store, ("m.zip", zipped(files)))
    files["part-2.safetensors"] = weights({"x": 4})
    assert "lacks the tensor 'b'" in refused(store, ("m.zip", zipped(files)))


SOUND = weights({"a": 6})
HOSTILE_FILES: list[tuple[dict[str, Any], str]] = [
    ({"pytorch_model.bin": b"\x80\x04"}, "pytorch_model.bin: weights are taken as safetensors only"),
    ({"deep/model.pt": b"\x80\x04"}, "deep/model.pt"),
    ({"weights.pkl": b"cos\nsystem\n"}, "weights.pkl"),
    ({"last.ckpt": b""}, "last.ckpt"),
    ({"modeling_llama.py": b"import os"}, "modeling_llama.py: a model brings no code"),
    ({"config.json": None}, "config.json"),
    ({"config.json": b"{"}, "config.json: it is not JSON"),
    ({"config.json": b'{"a":' * 50_000}, "config.json: it is not JSON"),
    ({"config.json": b"\xff\xfe"}, "config.json: it is not UTF-8"),
    ({"config.json": b" " * (5 << 20)}, "config.json: 5,242,880 bytes"),
    ({"config.json": {"model_type": "alien"}}, "model_type 'alien' is not known"),
    ({"config.json": {"model_type": "llama", "auto_map": {"AutoConfig": "x.C"}}}, "auto_map asks for code"),
    ({"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["x.T", None]}}}, "tokenizer_config.json: auto_map"),
    ({"model.safetensors": None}, "model.safetensors: the model has no weights"),
    ({"model.safetensors": None, "other.safetensors": SOUND}, "other.safetensors"),
    ({"model.safetensors": SOUND[:-1]}, "model.safetensors: it is cut off"),
    ({"model.safetensors": SOUND + b"x"}, "something stands behind"),
    ({"model.safetensors": SOUND[:5]}, "model.safetensors: it is shorter"),
    ({"model.safetensors": (1 << 62).to_bytes(8, "little") + b"{}"}, "states a header of"),
    ({"model.safetensors": weights({"a": 6}, b={"dtype": "F32", "shape": [2], "data_offsets": [8, 16]})}, "overlaps"),
    ({"model.safetensors": weights({}, a={"dtype": "F32", "shape": [9], "data_offsets": [0, 8]})}, "need others"),
    ({"model.safetensors": weights({}, a={"dtype": "OBJ", "shape": [], "data_offsets": [0, 0]})}, "type 'OBJ'"),
    ({"model.safetensors": b"\x80\x04\x95" + b"p" * 100}, "model.safetensors"),
    ({"model.safetensors.index.json": {"weight_map": {"a": "../../etc/x.safetensors"}}}, "no file of weights"),
    ({"tokenizer_config.json": {"chat_template": 7}}, "chat_template"),
]


@pytest.mark.parametrize(("changes", "message"), HOSTILE_FILES)
def test_a_hostile_file_is_refused_by_its_name(store: BlobStore, changes: dict[str, Any], message: str) -> None:
    # Tried before tokenizer and template, which take a process each.
    files = model(**{"tokenizer.json": None, "tokenizer_config.json": None, **changes})
    assert message in refused(store, ("model.zip", zipped(files, "")))


def damaged() -> bytes:
    """A zip with a byte of its data changed."""
    content = bytearray(zipped(model()))
    content[content.index(b"model.safetensors") + 40] ^= 0xFF
    return bytes(content)


def bomb() -> bytes:
    return zipped(model(**{"model.safetensors": bytes(70 << 20)}))


HOSTILE_ARCHIVES: list[tuple[str, bytes, str]] = [
    ("m.zip", zipped({"../config.json": b"{}"}, ""), "the path leads to a parent folder"),
    ("m.zip", zipped({"/etc/config.json": b"{}"}, ""), "the path is absolute"),
    ("m.zip", zipped({"a\\..\\config.json": b"{}"}, ""), "backslash"),
    ("m.zip", zipped({"config.json": b"{}", "CONFIG.json": b"{}"}, ""), "same name"),
    ("m.zip", zipped({"inner.zip": zipped(model())}, ""), "an archive inside the archive"),
    ("m.zip", zipped(model())[:-30], "not a zip"),
    ("m.zip", b"no zip at all", "not a zip"),
    ("m.zip", damaged(), "model.safetensors: its bytes are not those"),
    ("m.zip", bomb(), "unpacks to more than"),
    ("m.tar", tarred(model(), "w")[:4000], "cut off"),
    ("m.tar", tarred({}, "w", link="/etc/passwd"), "a link"),
    ("m.tar.gz", tarred(model())[:-200], "damaged or cut off"),
    ("m.tar", b"x" * 2000, "not a tar"),
]


@pytest.mark.parametrize(("file_name", "content", "message"), HOSTILE_ARCHIVES)
def test_a_hostile_archive_is_refused(store: BlobStore, file_name: str, content: bytes, message: str) -> None:
    assert message in refused(store, (file_name, content), max_bytes=100_000_000)


def test_uploads_that_do_not_belong_together_are_refused(store: BlobStore) -> None:
    assert "comes alone" in refused(store, ("m.zip", zipped(model())), ("config.json", b"{}"))
    assert "uploaded twice" in refused(store, ("config.json", b"{}"), ("config.json", b"{}"))
    assert "at most 100 are read" in refused(store, ("m.zip", zipped(model())), max_bytes=100)
    assert "more than 100 bytes" in refused(store, *model().items(), max_bytes=100)


def test_a_folder_leads_nowhere_else(store: BlobStore, tmp_path: Path) -> None:
    opened, secret = tmp_path / "open", tmp_path / "secret"
    for folder in (opened / "m", opened / "pipe", secret):
        folder.mkdir(parents=True)
    (secret / "config.json").write_text('{"model_type": "llama"}')
    (opened / "m" / "config.json").symlink_to(secret / "config.json")
    (opened / "away").symlink_to(secret)
    os.mkfifo(opened / "pipe" / "config.json")
    spec = {"open_folders": [str(opened)]}
    assert "leads out of the folder" in refused(store, folder=str(opened / "m"), **spec)
    for folder in (opened / "away", secret, opened / ".." / "secret"):
        assert "no folder inside one that the operator opened" in refused(store, folder=str(folder), **spec)
    assert "config.json: it is no file" in refused(store, folder=str(opened / "pipe"), **spec)
    assert "there is no such folder" in refused(store, folder=str(opened / "none"), **spec)


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """A hub with one model: its address, its files, and what it was asked for."""
    files = model(**{"pytorch_model.bin": b"\x80\x04", "modeling.py": b"import os"})
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            listing = {"sha": "c0ffee", "siblings": [{"rfilename": name} for name in files]}
            found = files.get(self.path.removeprefix("/acme/tiny/resolve/c0ffee/"))
            if self.path == "/api/models/acme/tiny/revision/main":
                found = json.dumps(listing).encode()
            self.send_response(200 if found is not None else 404)
            self.send_header("content-length", str(len(found or b"")))
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", files, asked
    server.shutdown()
    server.server_close()


def test_a_hub_gives_one_commit_and_only_what_is_kept(store: BlobStore, hub: Any) -> None:
    url, files, asked = hub
    spec = {"url": url, "id": "acme/tiny", "revision": "", "networks": ["127.0.0.0/8"]}
    made = imported(store, hub=spec)
    assert made["origin"] == f"{url}/acme/tiny at c0ffee"
    assert made["parameter_count"] == 10
    assert not [path for path in asked if path.endswith((".bin", ".py", ".doc"))]
    with pytest.raises(DomainError, match="is not there"):
        imported(store, hub={**spec, "id": "acme/none"})
    with pytest.raises(DomainError) as caught:
        imported(store, hub={**spec, "networks": []})
    assert caught.value.reason == "INVALID_FIELD"
    files["model.safetensors"] = SOUND[:-1]
    assert "it is cut off" in refused(store, hub=spec)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # Whatever the judge has against a template (test_conversations.py) stands in the error.
        ("{{ messages.__class__ }}", "it reaches for '__class__', which no template may see"),
        ("{% for message in messages %}", "Unexpected end of template"),
    ],
)
def test_a_hostile_template_is_refused_by_its_name(store: BlobStore, template: str, message: str) -> None:
    files = model(**{"tokenizer.json": None, "tokenizer_config.json": {"chat_template": template}})
    found = refused(store, ("m.zip", zipped(files)))
    assert found.startswith("tokenizer_config.json chat_template: ")
    assert message in found


LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"hidden_size": 64}, "config.json wants lm_head.weight as [300, 64]; the files have it as [300, 32]"),
        ({"vocab_size": 100}, "config.json wants lm_head.weight as [100, 32]; the files have it as [300, 32]"),
        ({"num_hidden_layers": 2}, "weights lack 10,304 of 39,840 parameters, model.layers.1."),
        ({"num_hidden_layers": 10**7}, "config.json tells of 10000000 layers; the files have 12 tensors"),
        ({"num_attention_heads": 5}, "config.json is not one of llama"),
        ({"hidden_size": 64, "quantization_config": {"quant_method": "gptq"}}, ""),
    ],
)
def test_weights_fit_what_the_config_says(store: BlobStore, changes: dict[str, Any], message: str) -> None:
    with torch.device("meta"):
        made = LlamaForCausalLM(LlamaConfig.from_dict(LLAMA))
    zeros = {name: torch.zeros(value.shape) for name, value in made.state_dict().items()}
    files = model(**{"config.json": LLAMA | changes, "model.safetensors": save(zeros), "tokenizer.json": None})
    if message:
        assert message in refused(store, ("m.zip", zipped(files)))
    else:
        assert imported(store, ("m.zip", zipped(files)))["parameter_count"] == 29_536


def test_what_takes_too_long_is_ended(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each turns a text into one of a hundred times its length.
    longer = {"type": "Replace", "pattern": {"Regex": "."}, "content": "ab" * 50}
    endless = json.loads(tokenizer()) | {"normalizer": {"type": "Sequence", "normalizers": [longer] * 4}}
    files = model(**{"tokenizer.json": endless, "tokenizer_config.json": None})
    monkeypatch.setattr(model_limits, "CPU_SECONDS", 1)
    assert "tokenizer.json: it does not end within the processor time" in refused(store, ("m.zip", zipped(files)))
    monkeypatch.setattr(model_limits, "CPU_SECONDS", 60)
    monkeypatch.setattr(model_limits, "WALL_SECONDS", 0.05)
    assert "tokenizer.json: it does not end within 0.05 s" in refused(store, ("m.zip", zipped(files)))


@pytest.mark.parametrize("content", [b"{}", b'{"version": "1.0", "model": {"type": "BPE"}}', b'{"auto_map": "x"}'])
def test_a_tokenizer_that_cannot_be_loaded_is_refused(store: BlobStore, content: bytes) -> None:
    files = model(**{"tokenizer.json": content})
    assert refused(store, ("m.zip", zipped(files))).startswith("tokenizer.json: ")


def test_a_template_may_refuse_a_conversation(store: BlobStore) -> None:
    polite = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages | tojson }}"
    )
    entries = [
        {"name": "default", "template": polite},
        {"name": "marked", "template": "{% generation %}x{% endgeneration %}"},
    ]
    files = model(**{"tokenizer_config.json": {"chat_template": entries}})
    assert imported(store, ("m.zip", zipped(files)))["parameter_count"] == 10


# Through the service.


async def finished_import(caller: Caller, request: pb.ImportModelRequest) -> training_pb2.ModelVersion:
    """The task's load, engine and apply, without Ray."""
    task = await caller.ImportModel(request)
    parts = app(caller)
    kind = ImportTasks(parts.database, parts.blobs, parts.datasets, parts.signer, parts.settings, parts.clock).kind()
    async with parts.database.system() as uow:
        row = await tasks.get(uow, task.name)
    spec = await kind.load(row, None)
    engine = load_entrypoint(kind.entrypoint)
    result = engine(LocalContext(spec, blobs_write=parts.blobs))
    async with parts.database.system() as uow:
        answer = await kind.apply(row, result, uow)
    return await caller.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=answer["model_version"]))


async def test_an_upload_becomes_a_signed_version(served: Caller, dataset: FakeDataset) -> None:
    await served.project()
    upload = dataset.upload("model.zip", zipped(model()))
    request = pb.ImportModelRequest(parent=PROJECT, uploads=[upload], labels={"family": "llama"}, request_id="i-1")
    version = await finished_import(served, request)
    assert (version.stage, version.origin, version.licence) == ("trained", upload, "apache-2.0")
    assert (version.parameter_count, version.architecture, version.context_length) == (10, "llama", 64)
    assert [(parent.name, parent.relation) for parent in version.lineage.parents] == [(upload, "imported_from")]
    assert "apache-2.0" in version.model_card
    assert not version.training_run
    assert (await served.VerifyModelVersion(pb.VerifyModelVersionRequest(name=version.name))).intact
    # The same request again is the same task.
    assert (await served.ImportModel(request)).name == (await served.ImportModel(request)).name


async def test_files_of_an_outside_run_become_a_version(served: Caller) -> None:
    await served.project()
    outside = training_pb2.Training(outside=True, secrecy="SECRECY_SECRET")
    await served.CreateTraining(CreateTrainingRequest(parent="orgs/acme", training_id="elsewhere", training=outside))
    run = "orgs/acme/trainings/elsewhere/runs/first"
    await served.CreateOutsideRun(CreateOutsideRunRequest(parent=run.rpartition("/runs/")[0], outside_run_id="first"))
    request = pb.ImportModelRequest(parent=PROJECT, run=run, run_path="model")
    assert (await refusal(served.ImportModel(request))).metadata["field"] == "run_path"
    for name, content in model().items():
        half = len(content) // 2
        for offset, part in ((0, content[:half]), (half, content[half:])):
            append = AppendRunArtifactRequest(
                name=run, path=f"model/{name}", upload_id="u", offset=offset, data=part, last=offset > 0
            )
            await served.AppendRunArtifact(append)
    version = await finished_import(served, request)
    assert (version.parameter_count, version.origin, version.licence) == (10, f"{run}/model", "apache-2.0")
    assert [(parent.name, parent.relation) for parent in version.lineage.parents] == [(run, "imported_from")]
    # As confidential as the run.
    assert version.secrecy == outside.secrecy
    both = pb.ImportModelRequest(parent=PROJECT, run=run, folder="/srv")
    assert (await refusal(served.ImportModel(both))).metadata["field"] == "uploads"


async def test_imports_that_cannot_begin_are_refused(served: Caller, dataset: FakeDataset) -> None:
    await served.project()
    upload = dataset.upload("model.zip", b"x")
    refusals: list[tuple[dict[str, Any], str, str]] = [
        ({}, "INVALID_FIELD", "uploads"),
        ({"uploads": [upload], "folder": "/x"}, "INVALID_FIELD", "uploads"),
        ({"uploads": [upload, upload]}, "INVALID_FIELD", "uploads"),
        ({"uploads": ["orgs/acme/uploads/none"]}, "NOT_FOUND", ""),
        ({"uploads": ["orgs/acme/uploads/open"]}, "STATE_CONFLICT", ""),
        ({"folder": "/etc"}, "INVALID_FIELD", "folder"),
        ({"hub": {"id": "Qwen/Qwen2.5-0.5B"}}, "INVALID_FIELD", "hub"),
    ]
    for fields, reason, named in refusals:
        error = await refusal(served.ImportModel(pb.ImportModelRequest(parent=PROJECT, **fields)))
        assert (error.reason, error.metadata.get("field", "")) == (reason, named), fields
    nowhere = pb.ImportModelRequest(parent=f"{PROJECT}-none", uploads=[upload])
    assert (await refusal(served.ImportModel(nowhere))).reason == "NOT_FOUND"


async def test_only_folders_that_the_operator_opened(
    mesh: Any, dataset: Any, tmp_path: Path, database_url: str
) -> None:
    settings = {"model_folders": f"{tmp_path}/a:{tmp_path}/b"}
    async with training_service(mesh, tmp_path, database_url, **settings) as service:
        caller = Caller(mesh, service=service)
        await caller.project()
        for folder, allowed in ((f"{tmp_path}/b/m", True), (f"{tmp_path}/b/../c", False), (f"{tmp_path}/bc", False)):
            call = caller.ImportModel(pb.ImportModelRequest(parent=PROJECT, folder=folder))
            if allowed:
                assert (await call).kind == "training.import_model"
            else:
                assert (await refusal(call)).metadata["field"] == "folder"
        await caller.close()
