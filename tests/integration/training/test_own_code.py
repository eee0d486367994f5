"""Own code of algorithms over the wire: a draft that two people edit, its versions, and a run of one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from argosy.training.v1 import algorithm_code_service_pb2 as pb
from argosy.training.v1 import algorithm_pb2, model_service_pb2, training_pb2
from argosy.training.v1 import algorithm_service_pb2 as catalogue
from argosy.training.v1 import run_service_pb2 as runs
from argosy.training.v1 import training_service_pb2 as trainings
from google.protobuf.field_mask_pb2 import FieldMask

from libs.common.clock import SYSTEM_CLOCK
from services.training.clients import python_files
from services.training.jobs.sweep import sweep
from services.training.store.manifests import code_manifests
from tests.integration.training.conftest import training_service
from tests.integration.training.peers import PROJECT, Caller, FakeDataset, refusal
from tests.integration.training.test_algorithm_run import carry, struct
from tests.integration.training.test_script_engine import COLUMNS, SCRIPT
from tests.unit.training.tables import wine

MINE = "orgs/acme/algorithms/mine"
DRAFT = f"{MINE}/draft"
WINES = "orgs/acme/datasets/wines/versions/1"
PARAMETERS = struct(
    type="object", properties={"passes": {"type": "integer", "default": 2, "minimum": 1, "maximum": 50}}
)


@pytest.fixture
async def editor(mesh: Any, dataset: FakeDataset, tmp_path: Path, database_url: str) -> AsyncIterator[Caller]:
    """An editor of acme with an algorithm, and the service itself."""
    async with training_service(mesh, tmp_path, database_url) as service:
        caller = Caller(mesh, service=service)
        await caller.CreateAlgorithm(
            catalogue.CreateAlgorithmRequest(
                parent="orgs/acme", algorithm_id="mine", algorithm=algorithm_pb2.Algorithm()
            )
        )
        yield caller
        await caller.close()


async def put(caller: Caller, path: str, content: str, **fields: Any) -> pb.AlgorithmDraft:
    return await caller.PutAlgorithmDraftFile(
        pb.PutAlgorithmDraftFileRequest(name=DRAFT, path=path, content=content, **fields)
    )


async def draft(caller: Caller) -> pb.AlgorithmDraft:
    return await caller.GetAlgorithmDraft(pb.GetAlgorithmDraftRequest(name=DRAFT))


async def publish(caller: Caller, **fields: Any) -> algorithm_pb2.AlgorithmVersion:
    return await caller.PublishAlgorithmDraft(pb.PublishAlgorithmDraftRequest(name=DRAFT, **fields))


async def settle(caller: Caller, **fields: Any) -> pb.AlgorithmDraft:
    given = pb.AlgorithmDraft(name=DRAFT, **fields)
    return await caller.UpdateAlgorithmDraft(pb.UpdateAlgorithmDraftRequest(algorithm_draft=given))


async def test_a_draft_is_edited_file_by_file(editor: Caller) -> None:
    assert not (await draft(editor)).files
    await put(editor, "main.py", "print(1)\n")
    await put(editor, "lib/parts.py", "x = 'é'\n")
    changed = await put(editor, "main.py", "print(2)\n")
    assert [(file.path, file.size) for file in changed.files] == [("lib/parts.py", 9), ("main.py", 9)]
    assert changed.etag == (await draft(editor)).etag
    request = pb.GetAlgorithmDraftFileRequest(name=DRAFT, path="lib/parts.py")
    read = await editor.GetAlgorithmDraftFile(request)
    assert (read.content, read.etag, read.file) == ("x = 'é'\n", changed.etag, changed.files[0])
    gone = await editor.DeleteAlgorithmDraftFile(pb.DeleteAlgorithmDraftFileRequest(name=DRAFT, path="lib/parts.py"))
    assert [file.path for file in gone.files] == ["main.py"]
    assert (await refusal(editor.GetAlgorithmDraftFile(request))).reason == "NOT_FOUND"
    again = pb.DeleteAlgorithmDraftFileRequest(name=DRAFT, path="lib/parts.py")
    assert "has no file lib/parts.py" in (await refusal(editor.DeleteAlgorithmDraftFile(again))).message


async def test_two_editors_do_not_overwrite_one_another(editor: Caller) -> None:
    seen = (await put(editor, "main.py", "one")).etag
    theirs = await put(editor, "main.py", "two", etag=seen)
    error = await refusal(put(editor, "main.py", "three", etag=seen))
    assert error.reason == "ETAG_MISMATCH"
    delete = pb.DeleteAlgorithmDraftFileRequest(name=DRAFT, path="main.py", etag=seen)
    assert (await refusal(editor.DeleteAlgorithmDraftFile(delete))).reason == "ETAG_MISMATCH"
    assert (await refusal(publish(editor, etag=seen))).reason == "ETAG_MISMATCH"
    assert (await refusal(settle(editor, etag=seen, task="x"))).reason == "ETAG_MISMATCH"
    request = pb.GetAlgorithmDraftFileRequest(name=DRAFT, path="main.py")
    assert (await editor.GetAlgorithmDraftFile(request)).content == "two"
    assert (await draft(editor)).etag == theirs.etag


async def test_a_path_that_leaves_or_hides_is_refused(editor: Caller) -> None:
    for path in ("../x.py", "/x.py", "a//b", ".hidden", "a/../b", "a b.py", "a\n.py", "", "x" * 201):
        error = await refusal(put(editor, path, "x"))
        assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", "path")


async def test_a_file_is_no_folder_and_drafts_have_an_end(editor: Caller) -> None:
    await put(editor, "a", "x")
    assert "would make a folder of a file: there is a" in (await refusal(put(editor, "a/b.py", "x"))).message
    large = "x" * 262_144
    for number in range(7):
        await put(editor, f"part{number}.txt", large)
    error = await refusal(put(editor, "last.txt", large))
    assert (error.reason, "2,097,152 bytes" in error.message) == ("TOO_LARGE", True)
    assert (await refusal(put(editor, "x.txt", large + "x"))).reason == "INVALID_FIELD"
    for number in range(92):
        await put(editor, f"small{number}.txt", "")
    assert "at most 100 files" in (await refusal(put(editor, "small.txt", ""))).message


async def test_what_cannot_run_is_not_published(editor: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_files, "_CPU_SECONDS", 1)
    assert "entry_file must be a Python file of the draft; there are: none" in (await refusal(publish(editor))).message
    await put(editor, "main.py", "import lib\n")
    await put(editor, "lib.py", "x = 1\ny = (\n")
    error = await refusal(publish(editor))
    assert (error.metadata["field"], "line 2: '(' was never closed" in error.message) == ("lib.py", True)
    await put(editor, "lib.py", "f'" + "{a}" * 80_000 + "'")
    error = await refusal(publish(editor))
    assert (error.metadata["field"], "takes too long" in error.message) == ("lib.py", True)
    await put(editor, "lib.py", "x = 1\n")
    wrong = struct(type="object", properties={"passes": {"type": "integer"}})
    assert "passes.default must be set" in (await refusal(settle(editor, parameters=wrong))).message
    small = algorithm_pb2.CodeLimits(max_memory_bytes=1)
    assert "limits.max_memory_bytes must be at least" in (await refusal(settle(editor, limits=small))).message
    await settle(editor, entry_file="absent.py")
    assert "there are: lib.py, main.py" in (await refusal(publish(editor))).message


async def test_a_version_stays_as_it_was_published(editor: Caller) -> None:
    await put(editor, "main.py", "print(1)\n")
    limits = algorithm_pb2.CodeLimits(max_seconds=60)
    await settle(editor, task="sorting", parameters=PARAMETERS, limits=limits)
    first = await publish(editor)
    assert (first.name, first.entry_file, first.framework) == (f"{MINE}/versions/1", "main.py", "python")
    assert (first.task, first.reads, first.base_version, first.parameters) == ("sorting", "table", "", PARAMETERS)
    assert (first.limits.max_seconds, first.limits.max_memory_bytes) == (60, 4 << 30)
    await put(editor, "main.py", "print(2)\n")
    second = await publish(editor)
    assert second.code_digest != first.code_digest
    request = pb.GetAlgorithmVersionFileRequest(name=first.name, path="main.py")
    assert (await editor.GetAlgorithmVersionFile(request)).content == "print(1)\n"
    listed = await editor.ListAlgorithmVersions(catalogue.ListAlgorithmVersionsRequest(parent=MINE))
    assert list(listed.algorithm_versions) == [second, first]
    assert await editor.GetAlgorithmVersion(catalogue.GetAlgorithmVersionRequest(name=first.name)) == first


async def test_the_sweep_leaves_code(editor: Caller) -> None:
    """What a draft and its versions name is garbage to nobody."""
    await put(editor, "main.py", "print(1)\n")
    first = await publish(editor)
    now = await put(editor, "main.py", "print(2)\n")
    app: Any = editor.service.app  # type: ignore[union-attr]
    async with app.database.system(read_only=True) as uow:
        kept = await code_manifests(uow)
    assert first.code_digest in kept
    assert len(kept) == 2
    await sweep(app.database, app.blobs, SYSTEM_CLOCK)
    request = pb.GetAlgorithmDraftFileRequest(name=DRAFT, path=now.files[0].path)
    assert (await editor.GetAlgorithmDraftFile(request)).content == "print(2)\n"


async def test_others_see_no_code(editor: Caller, mesh: Any) -> None:
    await put(editor, "main.py", "print(1)\n")
    version = await publish(editor)
    colleague, stranger = editor.other(subject="users/bob"), editor.other(org="other")
    for caller in (colleague, stranger):
        assert (await refusal(draft(caller))).reason == "NOT_FOUND"
        request = pb.GetAlgorithmVersionFileRequest(name=version.name, path="main.py")
        assert (await refusal(caller.GetAlgorithmVersionFile(request))).reason == "NOT_FOUND"
        await caller.close()
    built_in = "orgs/system/algorithms/ocr"
    request = pb.GetAlgorithmVersionFileRequest(name=f"{built_in}/versions/1", path="main.py")
    assert (await refusal(editor.GetAlgorithmVersionFile(request))).reason == "NOT_FOUND"
    error = await refusal(editor.GetAlgorithmDraft(pb.GetAlgorithmDraftRequest(name=f"{built_in}/draft")))
    assert error.reason == "NOT_FOUND"


async def started(caller: Caller, id: str, **fields: Any) -> training_pb2.TrainingRun:
    given = training_pb2.Training(model_project=PROJECT, spec=training_pb2.TrainingSpec(seed=7), **fields)
    made = await caller.CreateTraining(
        trainings.CreateTrainingRequest(parent="orgs/acme", training_id=id, training=given)
    )
    return await caller.RunTraining(trainings.RunTrainingRequest(name=made.name))


async def test_a_run_of_own_code_makes_a_version(editor: Caller, dataset: FakeDataset) -> None:
    await editor.project()
    dataset.add(WINES, wine())
    await put(editor, "main.py", SCRIPT)
    await put(editor, "columns/__init__.py", COLUMNS)
    await settle(editor, task="classification", parameters=PARAMETERS)
    code = await publish(editor)
    run = await started(
        editor, "wines", dataset_version=WINES, algorithm_version=code.name, parameters=struct(passes=3)
    )
    # It can be paused while it runs, as built-in algorithms cannot.
    await carry(editor, run.task)
    done = await editor.GetTrainingRun(trainings.GetTrainingRunRequest(name=run.name))
    assert (done.results["accuracy"] > 0.85, done.parameters["passes"]) == (True, 3)
    version = await editor.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=done.model_version))
    parents = {(parent.name, parent.digest, parent.relation) for parent in version.lineage.parents}
    assert (code.name, code.code_digest, "trained_by") in parents
    assert (WINES, dataset.digests[WINES], "trained_on") in parents
    assert f"Own code: `{code.name}` (manifest `{code.code_digest}`), run in a sandbox." in version.model_card
    assert (version.architecture, version.parameter_count) == ("mine", 39)
    request = model_service_pb2.DownloadModelFileRequest(name=version.name, path="labels.json")
    content = b"".join([part.data async for part in editor.DownloadModelFile(request)])
    assert json.loads(content) == ["grower 0", "grower 1", "grower 2"]
    clone = await editor.CloneTraining(runs.CloneTrainingRequest(name=done.name, training_id="again"))
    assert (clone.algorithm_version, clone.parameters) == (code.name, struct(passes=3))


async def test_parameters_and_data_are_checked_before_a_run(editor: Caller, dataset: FakeDataset) -> None:
    await editor.project()
    dataset.add(WINES, wine())
    await put(editor, "main.py", SCRIPT)
    await settle(editor, parameters=PARAMETERS)
    code = await publish(editor)
    error = await refusal(
        started(editor, "a", dataset_version=WINES, algorithm_version=code.name, parameters=struct(passes=51))
    )
    assert "training.parameters.passes: must be at most 50" in error.message
    error = await refusal(started(editor, "b", algorithm_version=code.name))
    assert "training.dataset_version must be set" in error.message
    mask = FieldMask(paths=["without_data"])
    given = pb.AlgorithmDraft(name=DRAFT, without_data=True)
    await editor.UpdateAlgorithmDraft(pb.UpdateAlgorithmDraftRequest(algorithm_draft=given, update_mask=mask))
    alone = await publish(editor)
    error = await refusal(started(editor, "c", dataset_version=WINES, algorithm_version=alone.name))
    assert "mine reads no data" in error.message
    huge = algorithm_pb2.CodeLimits(max_memory_bytes=1 << 40)
    await settle(editor, limits=huge)
    error = await refusal(started(editor, "d", algorithm_version=(await publish(editor)).name))
    assert (error.reason, error.metadata["check"]) == ("PREFLIGHT_FAILED", "memory")
