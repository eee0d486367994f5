"""Checkpoints are written beside the steps, one at a time; what is not complete does not count."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from libs.common.secrets import Keyring
from libs.compute.context import EngineError, EnginePaused
from services.training.engines import checkpoint_writer
from services.training.engines.checkpoint_writer import CheckpointWriter
from services.training.engines.checkpoints import Json, Progress, Snapshot, read_optimiser, read_weights, write_snapshot
from services.training.engines.group import Group
from services.training.engines.optimise import new_optimiser
from services.training.engines.train import run
from tests.integration.training import killed_writer
from tests.unit.training.samples import context, rows, tiny_spec


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Slow:
    """Stands in for `write_snapshot`: waits until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.began = 0

    def __call__(self, store: BlobStore, snapshot: Snapshot) -> Json:
        self.began += 1
        assert self.go.wait(20)
        return write_snapshot(store, snapshot)


def stepped(model: nn.Linear) -> torch.optim.AdamW:
    """An optimiser with moments."""
    optimiser = new_optimiser(model, 0.1, 0.0)
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return optimiser


def test_steps_go_on_while_a_checkpoint_is_written_and_do_not_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, store = Slow(), BlobStore(f"file://{tmp_path}/blobs")
    reported: list[Json] = []
    monkeypatch.setattr(checkpoint_writer, "write_snapshot", slow)
    model = nn.Linear(3, 2)
    optimiser, progress = stepped(model), Progress(step=5)
    writer = CheckpointWriter(store, Group(), reported.append)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    moment = optimiser.state_dict()["state"][0]["exp_avg"].clone()
    writer.write(model, optimiser, progress, "sft", "")
    assert not reported
    # A step while it is being written.
    optimiser.step()
    progress.step = 6
    slow.go.set()
    writer.wait()
    (first,) = reported
    assert (first["step"], first["progress"]["step"]) == (5, 5)
    kept = read_weights(store, first)
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.items())
    again = new_optimiser(model, 0.1, 0.0)
    read_optimiser(store, first, again)
    assert torch.equal(again.state_dict()["state"][0]["exp_avg"], moment)
    manifest = store.load_manifest_sync(first["manifest_digest"])
    assert [entry["path"] for entry in manifest["blobs"]] == ["model.safetensors", "optimiser.pt"]
    assert all(len(entry["sha256"]) == 64 and entry["size"] for entry in manifest["blobs"])


def test_weights_are_a_file_of_safetensors(tmp_path: Path) -> None:
    store = BlobStore(f"file://{tmp_path}/blobs", Keyring({"k": os.urandom(32)}, "k"))
    weights = {
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "wide": torch.randn(300, 400),
        "one": torch.tensor(2.5),
        "double": torch.randn(2, dtype=torch.float64),
        "none": torch.empty(0, 4),
    }
    checkpoint = write_snapshot(store, Snapshot(weights, None, torch.get_rng_state(), Progress(), "sft"))
    found = read_weights(store, checkpoint)
    assert set(found) == set(weights)
    for name, tensor in weights.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)
    (entry,) = store.load_manifest_sync(checkpoint["manifest_digest"])["blobs"]
    assert entry["size"] == checkpoint["bytes"] == len(save(weights))


@pytest.mark.parametrize("limit", [1_000, 80_000, 100_500, 150_000])
def test_full_disk_in_the_middle_of_a_checkpoint_is_named(tmp_path: Path, limit: int) -> None:
    """A file size limit of this process stands for the disk: the kernel refuses the write, of weights or of moments."""
    store = BlobStore(f"file://{tmp_path}/blobs")
    moments = {0: {"exp_avg": torch.randn(100, 250), "exp_avg_sq": torch.randn(100, 250)}}
    snapshot = Snapshot({"w": torch.randn(100, 250)}, moments, torch.get_rng_state(), Progress(), "sft")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(DomainError) as error:
            write_snapshot(store, snapshot)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert error.value.reason == "STORAGE_FULL"
    assert not list((tmp_path / "blobs" / "staging").iterdir())
    assert read_weights(store, write_snapshot(store, snapshot))["w"].shape == (100, 250)


def test_next_checkpoint_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, store, model = Slow(), BlobStore(f"file://{tmp_path}/blobs"), nn.Linear(3, 2)
    reported: list[Json] = []
    monkeypatch.setattr(checkpoint_writer, "write_snapshot", slow)
    writer = CheckpointWriter(store, Group(), reported.append)
    writer.write(model, None, Progress(step=1), "sft", "")
    second = threading.Thread(target=writer.write, args=(model, None, Progress(step=2), "sft", ""))
    second.start()
    time.sleep(0.2)
    assert slow.began == 1
    assert second.is_alive()
    slow.go.set()
    second.join()
    writer.wait()
    assert [each["step"] for each in reported] == [1, 2]


def test_run_fails_with_what_went_wrong_in_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, written = BlobStore(f"file://{tmp_path}/blobs"), []

    def full(store: BlobStore, snapshot: Snapshot) -> Json:
        written.append(snapshot.progress.step)
        if len(written) == 2:
            raise DomainError("STORAGE_FULL", "The disk is full.")
        return write_snapshot(store, snapshot)

    monkeypatch.setattr(checkpoint_writer, "write_snapshot", full)
    ctx = context(store, tiny_spec(pretrain=40, sft=4, checkpoint_every=4), rows(60))
    with pytest.raises(DomainError, match="disk is full"):
        run(ctx)
    # Prepared data and the first checkpoint; nothing was written after the one that failed.
    assert len(ctx.recorded.checkpoints) == 2
    assert written == [4, 8]


def test_steps_wait_where_more_would_be_lost_than_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, seen = BlobStore(f"file://{tmp_path}/blobs"), []
    ctx = context(store, tiny_spec(pretrain=60, sft=4, checkpoint_every=16), rows(60))

    def late(store: BlobStore, snapshot: Snapshot) -> Json:
        time.sleep(0.5)
        seen.append((snapshot.phase, snapshot.progress.step, ctx.recorded.metrics[-1][1]))
        return write_snapshot(store, snapshot)

    monkeypatch.setattr(checkpoint_writer, "write_snapshot", late)
    monkeypatch.setattr("services.training.engines.worker.METRICS_EVERY", 1)
    run(ctx)
    # Each at the fourteenth step; two more are taken while it is written, and sixteen hang on the one before.
    assert [each for each in seen if each[0] == "pretrain"][:4] == [
        ("pretrain", step, step + 2) for step in (14, 28, 42, 56)
    ]


def test_paused_run_has_reported_the_checkpoint_that_it_stopped_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(store: BlobStore, snapshot: Snapshot) -> Json:
        time.sleep(0.3)
        return write_snapshot(store, snapshot)

    monkeypatch.setattr(checkpoint_writer, "write_snapshot", late)
    store = BlobStore(f"file://{tmp_path}/blobs")
    ctx = context(store, tiny_spec(pretrain=9, sft=4, checkpoint_every=4), rows(60), pause_when=lambda _: True)
    with pytest.raises(EnginePaused):
        run(ctx)
    assert ctx.recorded.checkpoints[-1]["step"] == 4


def test_kill_in_the_middle_of_a_checkpoint_leaves_the_one_before(tmp_path: Path) -> None:
    store = BlobStore(f"file://{tmp_path}/blobs")
    spec = tiny_spec(pretrain=14, sft=10, checkpoint_every=4, probe=False)
    whole = context(store, spec, rows(60))
    wanted = run(whole)
    (tmp_path / "spec.json").write_text(json.dumps(whole.spec), encoding="utf-8")
    command = [sys.executable, "-m", killed_writer.__name__, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    kept = [json.loads(line) for line in (tmp_path / "checkpoints.jsonl").read_text().splitlines()]
    newest = kept[-1]
    assert (newest["phase"], newest["step"]) == ("pretrain", 8)
    again = context(store, spec, rows(60), resume=newest, attempt=2)
    found = run(again)
    first, second = (_weights(store, result) for result in (wanted, found))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-5, atol=1e-6)
    assert min(step for name, step, _ in again.recorded.metrics if name == "pretrain") > 8


@pytest.mark.parametrize("path", ["model.safetensors", "optimiser.pt", ""])
@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, path: str, damage: str) -> None:
    """A byte of a file, or of the manifest, is another one, or it is not there any more."""
    store, model = BlobStore(f"file://{tmp_path}/blobs"), nn.Linear(3, 2)
    optimiser = stepped(model)
    writer, reported = CheckpointWriter(store, Group(), lambda each: reported.append(each)), list[Json]()
    writer.write(model, optimiser, Progress(step=5), "sft", "")
    writer.wait()
    (checkpoint,) = reported
    entries = store.load_manifest_sync(checkpoint["manifest_digest"])["blobs"]
    digest = {entry["path"]: entry["sha256"] for entry in entries}.get(path, checkpoint["manifest_digest"])
    (blob,) = (tmp_path / "blobs").rglob(f"{digest}.*")
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 0xFF
    blob.chmod(0o600)
    blob.unlink() if damage == "gone" else blob.write_bytes(content)
    with pytest.raises(EngineError) as caught:
        read_weights(store, checkpoint)
        read_optimiser(store, checkpoint, optimiser)
    assert caught.value.reason == "CONTENT_INVALID"
    assert f"The checkpoint of sft at step 5 cannot be read: {path or 'its manifest'}" in caught.value.message


def _weights(store: BlobStore, result: Json) -> dict[str, torch.Tensor]:
    digest = next(file["sha256"] for file in result["files"] if file["path"] == "model.safetensors")
    return load(store.read_sync(digest))
