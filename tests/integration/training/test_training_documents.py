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
from tests.integration.training.peers import HELDOUT, PROJECT, TRAIN, Caller, FakeDataset, refusal

TUNING = f"""\
name: packages
display_name: Which package it is
labels: {{team: nlp}}
dataset_version: {TRAIN}
validation_version: {HELDOUT}
model_project: {PROJECT}
spec:
  seed: 7
  architecture: {{vocabulary_size: 300, hidden_size: 16, intermediate_size: 32, layers: 1, heads: 2, key_value_heads: 1,
                 sequence_length: 64}}
  phases:
    - method: pretrain
      steps: 10
      batch_size: 4
      learning_rate: 1.0e-3
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
    assert [dimension.path for dimension in made.space] == ["phases[1].learning_rate", "architecture.layers"]


async def test_applying_again_changes_what_is_different(editor: Caller) -> None:
    first = (await apply(editor, TUNING)).training
    again = await apply(editor, TUNING)
    assert (again.created, list(again.changed_fields), again.training.etag) == (False, [], first.etag)
    other = await apply(editor, TUNING.replace("display_name: Which package it is\n", "").replace("seed: 7", "seed: 8"))
    assert list(other.changed_fields) == ["display_name", "spec"]
    assert (other.training.display_name, other.training.spec.seed) == ("", 8)
    assert other.training.etag != first.etag


async def test_what_is_exported_is_the_same_training(editor: Caller) -> None:
    for text, shown in ((TUNING, "method: sft"), (TABLE, "iterations: 20")):
        made = (await apply(editor, text)).training
        written = await export(editor, made.name)
        assert shown in written
        assert list((await apply(editor, written)).changed_fields) == []
        copied = re.sub(r"^name: \w+", f"name: {made.name.rsplit('/', 1)[1]}-copy", written)
        copy = (await apply(editor, copied)).training
        for field in ("spec", "parameters", "labels", "dataset_version", "algorithm_version", "display_name"):
            assert getattr(copy, field) == getattr(made, field)


async def test_numbers_and_texts_of_parameters_stay_what_they_are(editor: Caller) -> None:
    training = (await apply(editor, TABLE)).training
    assert training.parameters.fields["feature_columns"].list_value.values[1].string_value == "7"
    assert "'7'" in await export(editor, training.name)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_every_built_in_algorithm_can_be_written(entry: Any) -> None:
    text = f"name: a\nalgorithm_version: {entry.name}\nmodel_project: {PROJECT}\n"
    assert read_document(text).training.algorithm_version == entry.name


# What is changed in which document, to what, and what is said; with the line of what was changed.
FAULTS = {
    "unknown field": (
        TUNING,
        "answer_column",
        "answr_column",
        "spec.phases[1].answr_column: is no field (did you mean answer_column?)",
    ),
    "unknown at the top": (
        TUNING,
        "dataset_version",
        "dataset",
        "dataset: is no field (did you mean dataset_version?); there are: algorithm_version, ",
    ),
    "another program's field": (TUNING, "method: METHOD_SFT", "stage: sft", "spec.phases[1].stage: is no field"),
    "unknown value": (
        TUNING,
        "METHOD_SFT",
        "sftt",
        "spec.phases[1].method: must be one of pretrain, sft, reward, dpo, grpo, distill (did you mean sft?)",
    ),
    "no whole number": (TUNING, "seed: 7", "seed: seven", "spec.seed: must be a whole number, not 'seven'"),
    "no number": (TUNING, "rate: 1e-4", "rate: .nan", "spec.phases[1].learning_rate: must be a number, not '.nan'"),
    "too large": (TUNING, "seed: 7", f"seed: {2**64}", "spec.seed: must be a whole number"),
    "out of bounds": (
        TUNING,
        "steps: 10",
        "steps: -1",
        "training.spec.phases[0].steps: must be greater than or equal to 1",
    ),
    "no list": (TUNING, "[1, 2]", "1", "search.space[1].categorical.values: must be a list"),
    "two of one": (
        TUNING,
        "categorical: {values: [1, 2]}",
        "uniform: {high: 2}\n      integer: {high: 2}",
        "search.space[1].integer: cannot stand beside uniform",
    ),
    "twice": (TUNING, "spec:", "name: other\nspec:", "name: comes twice"),
    "a field of the service": (TUNING, "spec:", "uid: x\nspec:", "uid: is no field"),
    "the training of a search": (TUNING, "  method: tpe", "  training: x", "search.training: is no field"),
    "no id": (TUNING, "name: packages", "name: A/b", "name: must be the id of the training"),
    "found by a rule": (TUNING, "method: pretrain", "method: dpo", "spec.phases[0].method must not be"),
    "found by a schema": (
        TABLE,
        "iterations: 20",
        "iterations: 0",
        "training.parameters.iterations: must be at least 1",
    ),
    "an object": (TUNING, "packages", "!!python/object/apply:os.getcwd []", "name: must be the id of the training"),
    "deep": (TABLE, "iterations: 20", f"iterations: {'[' * 40}{']' * 40}", "is nested deeper than 24 levels"),
}
OTHER_FAULTS = {
    "spec: {}": "name: must be set",
    "- a\n- b\n": "yaml: must be a mapping of fields",
    "# nothing\n": "yaml: is empty",
    "name: [\n": "yaml: is no YAML in line 2, column 1",
    "a: &a [x]\nb: [*a, *a]\n": "yaml: is no YAML in line 2, column 5: aliases are not allowed",
    "parameters: " + "[" * 20_000: "is no YAML",
}


async def test_a_fault_is_named_with_its_line(editor: Caller) -> None:
    for fault, (text, old, new, says) in FAULTS.items():
        error = await refusal(apply(editor, text.replace(old, new, 1)))
        line = text[: text.index(old)].count("\n") + 1 + ("integer" in says)
        assert error.reason == "INVALID_FIELD", fault
        assert says in error.message, f"{fault}: {error.message}"
        assert error.message.rstrip(".").endswith(f"(line {line})"), f"{fault}: {error.message}"
    for text, says in OTHER_FAULTS.items():
        error = await refusal(apply(editor, text))
        assert (error.reason, says in error.message) == ("INVALID_FIELD", True), error.message
    listed = await editor.ListTrainings(trainings.ListTrainingsRequest(parent="orgs/acme"))
    assert not listed.trainings
