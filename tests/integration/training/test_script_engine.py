"""The engine of own code without a service: what a script gets, and what becomes of what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load

from libs.common.blobs import BlobStore
from libs.compute import script_sandbox
from libs.compute.context import EngineCancelled, EngineError, EnginePaused, LocalContext, Recorded
from services.training.engines import script
from services.training.engines.train import run
from tests.integration.training.scripts import left, script_context
from tests.unit.training.samples import write_version
from tests.unit.training.tables import digits, wine

# A classifier by the mean of each class, in passes that each keep a checkpoint.
SCRIPT = """
import json
import argosy_run as run
import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file
from columns import numbers

settings = run.parameters()
train, heldout = (pq.read_table(run.DATA / f"{name}.parquet") for name in ("train", "heldout"))
labels = sorted(set(train["grower"].to_pylist()))

def read(table):
    return numbers(table), np.array([labels.index(one) for one in table["grower"].to_pylist()])

(x, y), (xh, yh) = read(train), read(heldout)
scale = np.nanstd(x, 0)
x, xh = (np.nan_to_num((part - np.nanmean(x, 0)) / scale) for part in (x, xh))
begun = run.resumed_step()
means = load_file(run.CHECKPOINT / "means.safetensors")["means"] if begun else np.zeros((3, x.shape[1]))
for step in range(begun, settings["passes"]):
    means = means / 2 + np.stack([x[y == label].mean(0) for label in range(3)]) / 2
    right = ((xh[:, None] - means) ** 2).sum(2).argmin(1) == yh
    run.log_metric(step + 1, accuracy=right.mean())
    run.progress((step + 1) / settings["passes"], f"pass {step + 1}")
    save_file({"means": means}, run.CHECKPOINT / "means.safetensors")
    run.save_checkpoint(step + 1)
print("begun at", begun, "with seed", run.seed())
save_file({"means": means}, run.OUTPUT / "model.safetensors")
(run.OUTPUT / "labels.json").write_text(json.dumps(labels))
"""
COLUMNS = """
import numpy as np

def numbers(table):
    names = sorted(name for name in table.column_names if name.startswith("n"))
    return np.stack([table[name].to_numpy(zero_copy_only=False).astype(float) for name in names], 1)
"""


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}/blobs")


@pytest.fixture
def start(store: BlobStore) -> Callable[..., LocalContext]:
    """A context for a script; `data`: that learns from wines."""

    def begin(main: str, *, data: bool = False, **others: Any) -> LocalContext:
        return script_context(store, main, version=write_version(store, wine()) if data else "", **others)

    return begin


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for temporary files that no other test writes or sweeps."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)


def refused(ctx: LocalContext) -> EngineError:
    """The error of a run, after which nothing is left running or lying about."""
    with pytest.raises(EngineError) as caught:
        run(ctx)
    assert not left()
    assert not list(Path(tempfile.gettempdir()).iterdir())
    assert len(caught.value.message) < 3_000
    # As a database can keep it.
    "".join([caught.value.message, *caught.value.metadata.values()]).encode()
    return caught.value


def test_a_package_learns_from_a_version(start: Callable[..., LocalContext], store: BlobStore) -> None:
    ctx = start(SCRIPT, data=True, columns=COLUMNS, parameters={"passes": 3})
    result = run(ctx)
    # A third of the wines are of the most frequent grower.
    assert result["results"]["accuracy"] > 0.85
    assert [file["path"] for file in result["files"]] == ["labels.json", "model.safetensors"]
    assert result["parameter_count"] == 3 * 13
    assert (result["architecture"], result["framework"].keys() > {"torch", "numpy"}) == ("mine", True)
    means = load(store.read_sync(result["files"][1]["sha256"]))["means"]
    assert means.shape == (3, 13)
    recorded = ctx.recorded
    assert [step for _, step, _ in recorded.metrics] == [1, 2, 3]
    assert {phase for phase, _, _ in recorded.metrics} == {"script"}
    assert (1 / 3, "pass 1") in recorded.progress
    assert ("INFO", "begun at 0 with seed 7") in recorded.logs
    assert [checkpoint["step"] for checkpoint in recorded.checkpoints] == [1, 2, 3]


def test_files_of_rows_are_there(start: Callable[..., LocalContext], store: BlobStore) -> None:
    rows, files = digits(12)
    source = (
        "import argosy_run as run\nimport pyarrow.parquet as pq\nfrom PIL import Image\n"
        "names = pq.read_table(run.DATA / 'train.parquet')['file_name'].to_pylist()\n"
        "sizes = {Image.open(run.file(name)).size for name in names}\n"
        "(run.OUTPUT / 'sizes.json').write_text(str([*sizes.pop()]))"
    )
    ctx = start(source)
    digest = write_version(store, rows, files)
    ctx.spec["train"] = {"grant": "g", "manifest_digest": digest, "media_grant": "g"}
    assert store.read_sync(run(ctx)["files"][0]["sha256"]) == b"[8, 8]"


def test_both_parts_may_have_files_of_one_name(start: Callable[..., LocalContext], store: BlobStore) -> None:
    rows, files = digits(24)
    names = [f"{number}.png" for number in range(12)]
    heldout = [row | {"file_name": name} for row, name in zip(rows[12:], names, strict=True)]
    pictures = {
        "train": {name: files[name] for name in names},
        "heldout": {name: files[f"{number + 12}.png"] for number, name in enumerate(names)},
    }
    source = (
        "import argosy_run as run, json\nfound = {}\n"
        "for part in ('train', 'heldout'):\n"
        "    found[part] = {f'{at}.png': run.file(f'{at}.png', part).read_bytes().hex() for at in range(12)}\n"
        "(run.OUTPUT / 'found.json').write_text(json.dumps(found))\n"
        "try:\n    run.file('0.png')\nexcept ValueError as error:\n    print(error)"
    )
    ctx = start(source)
    for part, granted, content in (("train", "train", rows[:12]), ("heldout", "validation", heldout)):
        digest = write_version(store, content, pictures[part])
        ctx.spec[granted] = {"grant": "g", "manifest_digest": digest, "media_grant": "g"}
    found = json.loads(store.read_sync(run(ctx)["files"][0]["sha256"]))
    assert found == {part: {name: content.hex() for name, content in files.items()} for part, files in pictures.items()}
    told = "train and heldout have different files called '0.png'; say which part is meant"
    assert ("INFO", told) in ctx.recorded.logs


def test_two_files_of_one_name_in_a_part_are_refused(start: Callable[..., LocalContext], store: BlobStore) -> None:
    rows, files = digits(4)
    contents = iter(files.values())

    class Named(dict[str, bytes]):
        def __getitem__(self, name: str) -> bytes:
            return next(contents)

    digest = write_version(store, [row | {"file_name": "a.png"} for row in rows], Named(files))
    ctx = start("open('output/m.json', 'w').write('{}')")
    for part in ("train", "validation"):
        ctx.spec[part] = {"grant": "g", "manifest_digest": digest, "media_grant": "g"}
    ctx.spec["validation"]["manifest_digest"] = write_version(store, digits(8)[0][4:], digits(8)[1])
    error = refused(ctx)
    assert (error.reason, error.message) == ("CONTENT_INVALID", "Two different files are called 'a.png'.")


def test_it_pauses_and_goes_on_where_it_was(start: Callable[..., LocalContext], store: BlobStore) -> None:
    given: dict[str, Any] = {"data": True, "columns": COLUMNS, "parameters": {"passes": 4}}
    whole = run(start(SCRIPT, **given))

    def after_two(recorded: Recorded) -> bool:
        return len(recorded.checkpoints) == 2

    first = start(SCRIPT, **given, pause_when=after_two)
    with pytest.raises(EnginePaused):
        run(first)
    second = start(SCRIPT, **given, resume=json.loads(json.dumps(first.recorded.checkpoints[-1])))
    result = run(second)
    assert ("INFO", "begun at 2 with seed 7") in second.recorded.logs
    assert [step for _, step, _ in second.recorded.metrics] == [3, 4]
    assert result["manifest_digest"] == whole["manifest_digest"]


def test_a_cancel_ends_it(start: Callable[..., LocalContext]) -> None:
    def printed(recorded: Recorded) -> bool:
        return ("INFO", "at work") in recorded.logs

    ctx = start("import time\nprint('at work')\ntime.sleep(60)", cancel_when=printed)
    with pytest.raises(EngineCancelled):
        run(ctx)
    assert not left()


FAILURES = {
    "an exception": ("a = {}\na['x']", "KeyError: 'x'"),
    "a long traceback": ("raise ValueError('y' * 100_000)", "... yyy"),
    "no output": ("pass", "output/: there is no model in it"),
    "pickle": ("open('output/model.pkl', 'wb').write(b'x')", "model.pkl: weights are taken as safetensors only"),
    "torch": ("open('output/model.pt', 'wb').write(b'x')", "model.pt: weights are taken as safetensors only"),
    "code": ("open('output/model.py', 'w').write('x')", "model.py: a model brings no code"),
    "another kind": ("open('output/model.tar', 'w').write('x')", "model.tar: a model has files of the kinds"),
    "a folder": (
        "import os\nos.mkdir('output/a')\nopen('output/a/config.json', 'w').write('{}')",
        "a/config.json: a model has plain files",
    ),
    "an odd name": ("open('output/\\n.json', 'w').write('{}')", "named with letters and digits"),
    "a name without characters": ("open(b'output/\\xff.json', 'w').write('{}')", "named with letters and digits"),
    "a checkpoint without characters": (
        "import argosy_run as run\nopen(b'checkpoint/\\xff', 'w').close()\nrun.save_checkpoint(1)",
        "checkpoint/?: names of files are UTF-8",
    ),
    "half a character": (
        "import os, time\nos.write(int(os.environ['ARGOSY_RUN_CHANNEL']), b'{\"progress\": \"\\\\ud800\"}\\n')\n"
        "time.sleep(9)",
        "? is not between 0 and 1",
    ),
    "no safetensors": ("open('output/m.safetensors', 'wb').write(b'x' * 20)", "m.safetensors: "),
    "no JSON": ("open('output/m.json', 'w').write('{')", "m.json: it is not JSON"),
    "deep JSON": ("open('output/m.json', 'w').write('[' * 100_000)", "m.json: it is not JSON"),
    "remote code": ("open('output/m.json', 'w').write('{\"auto_map\": {\"a\": \"b\"}}')", "auto_map asks for code"),
    "no ONNX": ("open('output/m.onnx', 'wb').write(b'xyz')", "m.onnx: it is not ONNX"),
    "no number": ("import argosy_run as run\nrun.log_metric(4, loss=float('nan'))", "loss is nan at step 4"),
    "a number beyond all": (
        "import os, time\nsaid = b'{\"metrics\": {\"a\": 1' + b'0' * 400 + b'}, \"step\": 1}\\n'\n"
        "os.write(int(os.environ['ARGOSY_RUN_CHANNEL']), said)\ntime.sleep(9)",
        "a is 1000000000",
    ),
    "what no database keeps": ("raise ValueError('a\\x00b\\ud800c')", "ValueError: a\ufffdb"),
    "no fraction": ("import argosy_run as run\nrun.progress(7)", "7.0 is not between 0 and 1"),
    "no step": ("import argosy_run as run\nrun.log_metric(-1, loss=1)", "-1 is no step"),
    "no name": ("import argosy_run as run\nrun.log_metric(1, **{'a b': 1})", "'a b' is no name of a metric"),
    "many metrics": (
        "import argosy_run as run\nfor at in range(2000):\n    run.log_metric(1, **{f'm{at}': 1})",
        "more than 640 metrics",
    ),
    "another message": (
        "import os\nos.write(int(os.environ['ARGOSY_RUN_CHANNEL']), b'{\"x\": 1}\\n')\nimport time\ntime.sleep(9)",
        "a message that argosy_run does not send",
    ),
    "what is true is no step": (
        "import os, time\nos.write(int(os.environ['ARGOSY_RUN_CHANNEL']), b'{\"checkpoint\": true}\\n')\ntime.sleep(9)",
        "True is no step",
    ),
    "a socket": (
        "import socket\nsocket.create_connection(('127.0.0.1', 6379))",
        "what no script may do: start a process, open a connection",
    ),
    "a process": ("import subprocess\nsubprocess.run(['true'])", "what no script may do: start a process"),
    "a file of others": ("open('/etc/passwd')", "it may read its folder and the libraries"),
    "too long": ("import time\ntime.sleep(60)", "ran longer than the 2 s"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_says_what_it_was(name: str, start: Callable[..., LocalContext]) -> None:
    source, says = FAILURES[name]
    error = refused(start(source, limits={"max_seconds": 2} if name == "too long" else {}))
    assert says in error.message
    assert error.reason == ("TRAINING_DIVERGED" if name in ("no number", "a number beyond all") else "CONTENT_INVALID")


def test_a_metric_has_any_name(start: Callable[..., LocalContext]) -> None:
    source = (
        'import os\nsaid = b\'{"metrics": {"phase": 1, "step": 2, "self": 3}, "step": 4}\\n\'\n'
        "os.write(int(os.environ['ARGOSY_RUN_CHANNEL']), said)\nopen('output/m.json', 'w').write('{}')"
    )
    ctx = start(source)
    run(ctx)
    assert ctx.recorded.metrics == [("script", 4, {"phase": 1, "step": 2, "self": 3})]


def test_what_it_prints_has_an_end(start: Callable[..., LocalContext]) -> None:
    ctx = start("for _ in range(30_000):\n    print('z' * 300)\nopen('output/m.json', 'w').write('{}')")
    run(ctx)
    printed = [body for severity, body in ctx.recorded.logs if severity == "INFO" and body.startswith("z")]
    assert sum(map(len, printed)) <= 1_000_000
    assert [body for severity, body in ctx.recorded.logs if severity == "WARNING"] == [
        "it prints more than 10,000 lines or 1,000,000 characters; the rest is left out"
    ]


def test_what_it_logs_has_an_end(start: Callable[..., LocalContext], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "_MOST_VALUES", 5)
    source = (
        "import argosy_run as run\nfor at in range(9):\n    run.log_metric(at, a=at, b=1)\n"
        "run.OUTPUT.joinpath('m.json').write_text('{}')"
    )
    ctx = start(source)
    assert run(ctx)["results"]["a"] == 8
    assert [step for _, step, _ in ctx.recorded.metrics] == [0, 1]
    assert [body for severity, body in ctx.recorded.logs if severity == "WARNING"] == [
        "it logs more than 5 values; curves end here, results do not"
    ]


def test_checkpoints_have_an_end(start: Callable[..., LocalContext], monkeypatch: pytest.MonkeyPatch) -> None:
    """The store keeps those that are no longer the newest for a while."""
    monkeypatch.setattr(script, "_MOST_DISKS", 2)
    source = (
        "import argosy_run as run\nfor at in range(9):\n"
        "    run.CHECKPOINT.joinpath('a').write_text(str(at) * 900_000)\n    run.save_checkpoint(at)"
    )
    ctx = start(source, limits={"max_disk_bytes": 1 << 20})
    assert "its checkpoints have more bytes together than they may: 2 MiB" in refused(ctx).message
    assert [checkpoint["step"] for checkpoint in ctx.recorded.checkpoints] == [0, 1]


def test_what_a_killed_carrier_left_goes_with_the_next(start: Callable[..., LocalContext]) -> None:
    program = (
        "import os, signal\nfrom libs.compute.scratch import scratch_folder\n"
        "with scratch_folder('argosy-code-') as folder:\n    print(folder, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False)
    folder = Path(done.stdout.strip())
    assert folder.exists()
    run(start("open('output/m.json', 'w').write('{}')"))
    assert not folder.exists()


def test_nothing_runs_without_a_sandbox(
    start: Callable[..., LocalContext], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import runpy, sys\nfrom libs.compute import landlock\nlandlock._CREATE_RULESET = 9999\n"
        f"runpy.run_path({os.fspath(script_sandbox.CHILD)!r}, run_name='__main__')"
    )
    monkeypatch.setattr(script_sandbox, "CHILD", child)
    error = refused(start("open('output/m.json', 'w').write('{}')"))
    assert (error.reason, error.metadata["check"]) == ("PREFLIGHT_FAILED", "sandbox")
    assert "the kernel has no Landlock" in error.message
