"""Trainings as YAML over the wire: applied, refused with the line, and given back."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from argosy.training.v1 import search_pb2, training_pb2
from argosy.training.v1 import search_service_pb2 as searches
from argosy.training.v1 import training_document_service_pb2 as pb
from argosy.training.v1 import training_service_pb2 as trainings

from services.training.domain.built_in import ENTRIES
from services.training.handlers.training_documents import read_document
from tests.integration.training.conftest import training_service
from tests.integration.training.peers import PROJECT, TRAIN, Caller, FakeDataset, refusal

TUNING = f"""\
name: packages
display_name: Which package it is
labels: {{team: nlp}}
dataset_version: {TRAIN}
model_project: {PROJECT}
spec:
  seed: 7
  architecture: {{vocabulary_size: 300, hidden_size: 16, intermediate_size: 32, layers: 1, heads: 2, key_value_heads: 1,
                 sequence_length: 64}}
  phases:
    - method: pretrain
      steps: 10
      batch_size: 4
      text_column: text
    - method: METHOD_SFT
      steps: 10
      batch_size: 4
      learning_rate: 1e-4
      text_column: text
      answer_column: label
      prompt_template: |-
        What is it?
        {{text}}
  on_divergence: stop
search:
  method: tpe
  space:
    - path: phases[1].learning_rate
      log_uniform: {{low: 1e-5, high: 0.01}}
    - path: architecture.layers
      categorical: {{values: [1, 2]}}
  objective: {{result: sft.heldout_loss_after, direction: minimize}}
  budget: {{max_trials: 4}}
"""
TABLE = f"""\
name: table
model_project: {PROJECT}
dataset_version: {TRAIN}
algorithm_version: orgs/system/algorithms/tabular-classification/versions/1
parameters:
  label_column: label
  feature_columns: [text, '7']
  iterations: 20
  learning_rate: 0.25
"""


@pytest.fixture
async def editor(mesh: Any, dataset: FakeDataset, tmp_path: Path, database_url: str) -> AsyncIterator[Caller]:
    """An editor of acme with a model project, and the service itself."""
    async with training_service(mesh, tmp_path, database_url) as service:
        caller = Caller(mesh, service=service)
        await caller.project()
        yield caller
        await caller.close()


async def apply(caller: Caller, text: str) -> pb.ApplyTrainingResponse:
    return await caller.ApplyTraining(pb.ApplyTrainingRequest(parent="orgs/acme", yaml=text))


async def export(caller: Caller, name: str) -> str:
    return (await caller.ExportTraining(pb.ExportTrainingRequest(name=name))).yaml


async def test_a_document_makes_a_training_and_describes_a_search(editor: Caller) -> None:
    done = await apply(editor, TUNING)
    assert (done.created, done.training.name) == (True, "orgs/acme/trainings/packages")
    phases = done.training.spec.phases
    assert [phase.method for phase in phases] == [training_pb2.Phase.METHOD_PRETRAIN, training_pb2.Phase.METHOD_SFT]
    assert phases[1].learning_rate == 1e-4
    assert phases[1].prompt_template == "What is it?\n{text}"
    assert dict(done.training.labels) == {"team": "nlp"}
    assert done.training.spec.on_divergence == training_pb2.TrainingSpec.ON_DIVERGENCE_STOP
    assert done.search.training == done.training.name
    assert done.search.method == search_pb2.HyperparameterSearch.METHOD_TPE
    made = await editor.CreateSearch(searches.CreateSearchRequest(parent="orgs/acme", search=done.search))
    assert made.space == done.search.space


async def test_applying_again_changes_what_is_different(editor: Caller) -> None:
    first = (await apply(editor, TUNING)).training
    again = await apply(editor, TUNING)
    assert (again.created, list(again.changed_fields), again.training.etag) == (False, [], first.etag)
    other = await apply(editor, TUNING.replace("display_name: Which package it is\n", "").replace("seed: 7", "seed: 8"))
    assert list(other.changed_fields) == ["display_name", "spec"]
    assert (other.training.display_name, other.training.spec.seed) == ("", 8)
    assert other.training.etag != first.etag


@pytest.mark.parametrize("text", [TUNING, TABLE])
async def test_what_is_exported_is_the_same_training(text: str, editor: Caller) -> None:
    made = (await apply(editor, text)).training
    written = await export(editor, made.name)
    assert list((await apply(editor, written)).changed_fields) == []
    copy = (await apply(editor, re.sub(r"^name: \w+", "name: copy", written))).training
    for field in ("spec", "parameters", "labels", "dataset_version", "algorithm_version", "display_name"):
        assert getattr(copy, field) == getattr(made, field)
    assert "method: sft" in written or "iterations: 20" in written


async def test_numbers_and_texts_of_parameters_stay_what_they_are(editor: Caller) -> None:
    training = (await apply(editor, TABLE)).training
    assert training.parameters["feature_columns"][1] == "7"
    assert "'7'" in await export(editor, training.name)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_every_built_in_algorithm_can_be_written(entry: Any) -> None:
    text = f"name: a\nalgorithm_version: {entry.name}\nmodel_project: {PROJECT}\n"
    assert read_document(text).training.algorithm_version == entry.name


FAULTS = {
    "unknown field": (
        TUNING.replace("answer_column", "answr_column"),
        ("spec.phases[1].answr_column: is no field (did you mean answer_column?)", "(line 18)"),
    ),
    "unknown at the top": (
        TUNING.replace("dataset_version", "dataset"),
        ("dataset: is no field (did you mean dataset_version?)", "there are: algorithm_version, ", "(line 4)"),
    ),
    "another program's field": (
        TUNING.replace("method: METHOD_SFT", "stage: sft"),
        ("spec.phases[1].stage: is no field", "(line 14)"),
    ),
    "unknown value": (
        TUNING.replace("METHOD_SFT", "sftt"),
        ("spec.phases[1].method: must be one of pretrain, sft, ", "(did you mean sft?)", "(line 14)"),
    ),
    "no number": (
        TUNING.replace("seed: 7", "seed: seven"),
        ("spec.seed: must be a whole number, not 'seven'", "(line 7)"),
    ),
    "no fraction": (TUNING.replace("1e-4", ".nan"), ("learning_rate: must be a number, not '.nan'", "(line 17)")),
    "too large": (TUNING.replace("seed: 7", f"seed: {2**64}"), ("spec.seed: must be a whole number",)),
    "out of bounds": (TUNING.replace("steps: 10", "steps: -1", 1), ("spec.phases[0].steps", "(line 11)")),
    "no list": (TUNING.replace("[1, 2]", "1"), ("search.space[1].categorical.values: must be a list", "(line 28)")),
    "two of one": (
        TUNING.replace("categorical: {values: [1, 2]}", "{integer: {high: 2}, uniform: {high: 2}}").replace(
            "      {integer", "      integer: {low: 1, high: 2}\n      uniform: {low: 1, high: 2}\n#"
        ),
        ("search.space[1].uniform: cannot stand beside integer", "(line 29)"),
    ),
    "twice": (TUNING + "name: other\n", ("name: comes twice", "(line 31)")),
    "a field of the service": (TUNING + "uid: x\n", ("uid: is no field",)),
    "of a search, its training": (TUNING + "  training: x\n", ("search.training: is no field",)),
    "no name": (TUNING.replace("name: packages\n", "", 1), ("name: must be set",)),
    "no id": (TUNING.replace("name: packages", "name: A/b"), ("name: must be the id of the training", "(line 1)")),
    "found by a rule": (
        TUNING.replace("method: pretrain", "method: dpo"),
        ("spec.phases[0].method must not be", "(line 10)"),
    ),
    "found by the schema": (
        TABLE.replace("iterations: 20", "iterations: 0"),
        ("training.parameters.iterations: must be at least 1", "(line 8)"),
    ),
    "no mapping": ("- a\n- b\n", ("yaml: must be a mapping of fields",)),
    "empty": ("# nothing\n", ("yaml: is empty",)),
    "no YAML": ("name: [\n", ("yaml: is no YAML in line 2, column 1",)),
    "aliases": ("a: &a [x]\nb: [*a, *a]\n", ("yaml: is no YAML in line 2, column 5: aliases are not allowed",)),
    "objects": ("name: !!python/object/apply:os.getcwd []\n", ("name: must be the id of the training",)),
    "deep": ("parameters: " + "[" * 20_000, ("is no YAML",)),
    "deep parameters": ("name: a\nparameters: {a: " + "[" * 40 + "]" * 40 + "}\n", ("nested deeper than",)),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_named_with_its_line(fault: str, editor: Caller) -> None:
    text, says = FAULTS[fault]
    error = await refusal(apply(editor, text))
    assert error.reason == "INVALID_FIELD"
    for part in says:
        assert part in error.message, error.message
    listed = await editor.ListTrainings(trainings.ListTrainingsRequest(parent="orgs/acme"))
    assert not listed.trainings
