"""The algorithm catalogue: schemas of parameters, own versions, the choice for a task, the pre-flight, the card."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from libs.common.domain import DomainError
from services.training.domain import schemas
from services.training.domain.algorithm_card import algorithm_card
from services.training.domain.algorithm_preflight import preflight_algorithm
from services.training.domain.algorithms import Algorithm, AlgorithmVersion, Role, Visibility, resolve
from services.training.domain.built_in import ENTRIES, built_in
from services.training.domain.choice import choose
from services.training.domain.preflight import DataFacts
from services.training.domain.spec import TrainingSpec
from services.training.domain.trainings import Training, TrainingRun
from tests.unit.factories import resource_fields

TABULAR = built_in("orgs/system/algorithms/tabular-classification/versions/1")
SEED = TrainingSpec(phases=())


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def field_of(caught: pytest.ExceptionInfo[DomainError]) -> str:
    return caught.value.metadata["field"]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_built_in_schemas_are_sound(entry: Any) -> None:
    schemas.check_schema(entry.parameters, "parameters")
    assert entry.columns.keys() <= entry.parameters["properties"].keys()
    assert not schemas.violations(entry.parameters, schemas.fill(entry.parameters, {}), "parameters")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"$ref": "#"}, "p.$ref"),
        ({"type": "array"}, "p.type"),
        ({"type": "object", "additionalProperties": True}, "p.additionalProperties"),
        ({"type": "object", "$schema": "http://json-schema.org/draft-04/schema"}, "p.$schema"),
        (schema(a={"type": "string", "pattern": "(a+)+$", "default": ""}), "p.properties.a.pattern"),
        (schema(a={"type": "text", "default": ""}), "p.properties.a.type"),
        (schema(a={"type": "object", "default": {}}), "p.properties.a.type"),
        (schema(a={"type": "integer"}), "p.properties.a.default"),
        (schema(a={"type": "integer", "minimum": 3, "default": 1}), "p.properties.a.default"),
        (schema(a={"type": "array", "default": []}), "p.properties.a.items"),
        (schema(a={"type": "integer", "minimum": "0", "default": 1}), "p.properties.a.minimum"),
        (schema(a=3), "p.properties.a"),
        (schema(**{f"a{number}": {} for number in range(101)}), "p.properties"),
        (schema(a={"type": "string", "default": "x" * 70_000}), "p"),
    ],
)
def test_a_hostile_or_wrong_schema_is_refused_by_its_path(given: dict[str, Any], path: str) -> None:
    with pytest.raises(DomainError) as caught:
        schemas.check_schema(given, "p")
    assert field_of(caught) == path


def test_a_schema_nested_for_ever_is_refused() -> None:
    part: dict[str, Any] = {"type": "string"}
    for _ in range(50):
        part = {"type": "array", "items": part}
    with pytest.raises(DomainError, match="deeper"):
        schemas.check_schema(schema(a=part | {"default": []}), "p")


def test_each_wrong_parameter_is_named() -> None:
    given = {
        "iterations": 0,
        "model": "forest",
        "feature_columns": ["a", 7],
        "l2": True,
        "depth": 3,
    }
    found = dict(schemas.violations(TABULAR.parameters, given, "training.parameters"))
    assert found.keys() == {
        "training.parameters.iterations",
        "training.parameters.model",
        "training.parameters.feature_columns[1]",
        "training.parameters.l2",
        "training.parameters.depth",
    }
    assert found["training.parameters.iterations"] == "must be at least 1"
    assert found["training.parameters.model"] == "must be one of boosting, linear"


def own(parameters: dict[str, Any], fixed: dict[str, Any]) -> AlgorithmVersion:
    version = AlgorithmVersion(
        **resource_fields("orgs/acme/algorithms/mine/versions/1"), parameters=parameters, fixed=fixed
    )
    version.derive(TABULAR)
    return version


def test_an_own_version_opens_some_parameters_and_fixes_others() -> None:
    version = own(
        schema(iterations={"type": "integer", "maximum": 50, "default": 20}), {"model": "boosting", "label_column": "y"}
    )
    version.require_sound(TABULAR)
    entry = version.entry(TABULAR)
    parameters, faults = resolve(entry, TABULAR, {"iterations": 40}, "p")
    assert not faults
    assert parameters == schemas.fill(TABULAR.parameters, {"iterations": 40, "model": "boosting", "label_column": "y"})
    assert resolve(entry, TABULAR, {"iterations": 51}, "p")[1] == [("p.iterations", "must be at most 50")]
    assert resolve(entry, TABULAR, {"model": "linear"}, "p")[1][0][0] == "p.model"
    # The base has a bound that the own schema says nothing of.
    assert resolve(entry, TABULAR, {"iterations": -3}, "p")[1] == [("p.iterations", "must be at least 1")]


@pytest.mark.parametrize(
    ("parameters", "fixed", "path"),
    [
        (schema(), {"depth": 3}, "algorithm_version.fixed.depth"),
        (schema(), {"iterations": 0}, "algorithm_version.fixed.iterations"),
        (schema(depth={"type": "integer", "default": 3}), {}, "algorithm_version.parameters.properties.depth"),
        (
            schema(iterations={"type": "integer", "default": 9999}),
            {},
            "algorithm_version.parameters.properties.iterations",
        ),
        (
            schema(iterations={"type": "integer", "default": 9}),
            {"iterations": 3},
            "algorithm_version.fixed.iterations",
        ),
    ],
)
def test_an_own_version_cannot_leave_its_base(parameters: dict[str, Any], fixed: dict[str, Any], path: str) -> None:
    with pytest.raises(DomainError) as caught:
        own(parameters, fixed).require_sound(TABULAR)
    assert field_of(caught) == path


def test_an_unpublished_algorithm_is_its_creators() -> None:
    algorithm = Algorithm(**resource_fields("orgs/acme/algorithms/mine"))
    for subject, role in (("users/alice", 2), ("users/root", 4), ("services/training", 0)):
        algorithm.require_visible_to(subject, role)
    with pytest.raises(DomainError, match="does not exist"):
        algorithm.require_visible_to("users/bob", 3)
    algorithm.visibility = Visibility.ORGANIZATION
    algorithm.require_visible_to("users/bob", 3)


def facts(columns: dict[str, str], sample: list[dict[str, str]], **fields: Any) -> DataFacts:
    usual: dict[str, Any] = {
        "what": "dataset_version",
        "name": "orgs/acme/datasets/d/versions/1",
        "row_count": len(sample),
    }
    return DataFacts(**{**usual, **fields}, columns=columns, sample=sample)


FLOWERS = facts(
    {"petal": "double", "colour": "string", "class": "string"},
    [{"petal": "1.5", "colour": "red", "class": "rose"}, {"petal": "2", "colour": "blue", "class": "iris"}],
)
REVIEWS = facts(
    {"stars": "int53", "review": "string", "mood": "string"},
    [
        {"stars": "5", "review": "It arrived in two days and works.", "mood": "good"},
        {"stars": "1", "review": "It broke when I opened the box.", "mood": "bad"},
        {"stars": "2", "review": "It is far too heavy to be carried.", "mood": "bad"},
    ],
)
PICTURES = facts(
    {"file_name": "string", "media_type": "string", "sha256": "string", "animal": "string"},
    [{"file_name": "a.png", "media_type": "image", "sha256": name, "animal": name} for name in ("cat", "dog")],
)


STREETS = facts(
    {"file_name": "string", "media_type": "string", "boxes": "json"},
    [{"file_name": "a.png", "media_type": "image", "boxes": "[]"}],
)
LINES = facts(
    {"file_name": "string", "media_type": "string", "written": "string"},
    [{"file_name": "a.png", "media_type": "image", "written": "twelve"}],
)
SOUNDS = facts(
    {"file_name": "string", "media_type": "string", "word": "string"},
    [{"file_name": f"{name}.wav", "media_type": "audio", "word": name} for name in ("yes", "no")],
)
SENTENCES = facts({"id": "string", "sentence": "string"}, [{"id": "1", "sentence": "今天 天气 很 好"}])
PAIRS = facts(
    {"question": "string", "reply": "string"}, [{"question": "Where does it stand, then?", "reply": "By the wall."}]
)


@pytest.mark.parametrize(
    ("task", "data", "id", "columns"),
    [
        ("detection", STREETS, "object-detection", {"image_column": "file_name", "objects_column": "boxes"}),
        ("ocr", LINES, "ocr", {"image_column": "file_name", "text_column": "written"}),
        ("speech-recognition", SOUNDS, "speech-commands", {"audio_column": "file_name", "label_column": "word"}),
        ("word-segmentation", SENTENCES, "chinese-word-segmentation", {"words_column": "sentence"}),
        ("embedding", PAIRS, "text-embedding", {"anchor_column": "question", "positive_column": "reply"}),
        ("reinforcement-learning", None, "policy-gradient", {}),
        ("classification", FLOWERS, "tabular-classification", {"label_column": "class"}),
        ("regression", FLOWERS, "tabular-regression", {"target_column": "petal"}),
        ("classification", REVIEWS, "text-classification", {"text_column": "review", "label_column": "mood"}),
        ("regression", REVIEWS, "tabular-regression", {"target_column": "stars"}),
        ("classification", PICTURES, "image-classification", {"image_column": "file_name", "label_column": "animal"}),
    ],
)
def test_algorithm_and_columns_are_chosen(task: str, data: DataFacts | None, id: str, columns: dict[str, str]) -> None:
    choice = choose(task, data, ENTRIES, {})
    assert (choice.entry.id, choice.parameters) == (id, columns)
    assert id in choice.reason
    assert all(repr(name) in choice.reason for name in columns.values())


def test_every_task_is_chosen_for() -> None:
    mark = next(mark for mark in test_algorithm_and_columns_are_chosen.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    assert {case[0] for case in mark.args[1]} | {"automl"} == {entry.task for entry in ENTRIES}


def test_automl_foretells_the_column_that_is_named() -> None:
    """Without a name it is the one that looks like an answer, of whatever type."""
    assert choose("automl", FLOWERS, ENTRIES, {"target_column": "petal"}).parameters == {"target_column": "petal"}
    assert choose("automl", FLOWERS, ENTRIES, {}).parameters == {"target_column": "class"}
    prices = facts({"rooms": "int64", "price": "double"}, [{"rooms": "3", "price": "1.5"}])
    assert choose("automl", prices, ENTRIES, {}).parameters == {"target_column": "price"}
    plain = facts({"a": "int64", "b": "string"}, [{"a": "3", "b": "x"}])
    assert choose("automl", plain, ENTRIES, {}).parameters == {"target_column": "b"}


def test_what_cannot_be_chosen_says_why() -> None:
    with pytest.raises(DomainError) as caught:
        choose("classification", None, ENTRIES, {})
    assert field_of(caught) == "training.dataset_version"
    with pytest.raises(DomainError) as caught:
        choose("astrology", FLOWERS, ENTRIES, {})
    assert field_of(caught) == "training.task"
    with pytest.raises(DomainError, match="target_column") as caught:
        choose("regression", facts({"name": "string"}, [{"name": "a"}]), ENTRIES, {})
    assert caught.value.reason == "PREFLIGHT_FAILED"


def found(data: DataFacts, memory_bytes: int = 0, **parameters: Any) -> list[tuple[str, bool, str]]:
    filled = schemas.fill(TABULAR.parameters, {"label_column": "class", **parameters})
    findings, _ = preflight_algorithm(TABULAR, filled, [data], memory_bytes)
    return [(finding.check, finding.blocking, finding.message) for finding in findings]


def test_preflight_of_good_data_says_nothing() -> None:
    assert found(FLOWERS) == []


@pytest.mark.parametrize(
    ("data", "parameters", "check", "blocking", "words"),
    [
        (replace(FLOWERS, row_count=0, sample=[]), {}, "schema", True, "no rows"),
        (FLOWERS, {"label_column": "kind"}, "schema", True, "'kind'"),
        (FLOWERS, {"label_column": "petal"}, "schema", True, "holds double"),
        (FLOWERS, {"feature_columns": ["petal", "class"]}, "schema", True, "label_column and by feature_columns"),
        (facts({"class": "string"}, [{"class": "a"}]), {}, "schema", True, "no column beside"),
        (
            replace(FLOWERS, sample=[*FLOWERS.sample, {"petal": "1", "class": ""}], row_count=9),
            {},
            "labels",
            False,
            "Row 3 of dataset_version has no value in 'class'",
        ),
        (replace(FLOWERS, sample=FLOWERS.sample[:1], row_count=1), {}, "labels", True, "the same value"),
        (replace(FLOWERS, sample=FLOWERS.sample[:1], row_count=9), {}, "labels", False, "the first 1 rows"),
        (replace(FLOWERS, sample=[{"petal": "1"}], row_count=1), {}, "labels", True, "No row"),
    ],
)
def test_preflight_names_what_is_wrong(
    data: DataFacts, parameters: dict[str, Any], check: str, blocking: bool, words: str
) -> None:
    messages = [message for name, stops, message in found(data, **parameters) if (name, stops) == (check, blocking)]
    assert any(words in message for message in messages)


def test_preflight_knows_the_memory_of_the_machine() -> None:
    large = replace(FLOWERS, row_count=1_000_000_000)
    assert [(check, blocking) for check, blocking, _ in found(large, 1 << 30)] == [("memory", True)]


def training(**fields: Any) -> Training:
    usual: dict[str, Any] = {
        "dataset_version": "orgs/acme/datasets/d/versions/1",
        "model_project": "orgs/acme/modelProjects/p",
        "spec": SEED,
        "algorithm_version": TABULAR.name,
    }
    return Training(**resource_fields("orgs/acme/trainings/t"), **{**usual, **fields})


def test_an_algorithm_needs_no_phases() -> None:
    training().check()
    training(algorithm_version="", task="classification").check()
    with pytest.raises(DomainError) as caught:
        training(algorithm_version="").check()
    assert field_of(caught) == "spec.phases"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"spec": replace(SEED, workers=2)}, "training.spec.workers"),
        ({"spec": replace(SEED, gpus_per_worker=1)}, "training.spec.gpus_per_worker"),
        ({"base_model_version": "orgs/acme/modelProjects/p/versions/1"}, "training.base_model_version"),
    ],
)
def test_what_an_algorithm_does_not_take_is_refused(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(DomainError) as caught:
        training(**fields).check()
    assert field_of(caught) == path


def test_an_algorithm_of_another_organization_is_not_there() -> None:
    with pytest.raises(DomainError) as caught:
        training(algorithm_version="orgs/rival/algorithms/a/versions/1").check()
    assert caught.value.reason == "NOT_FOUND"


def test_card_tells_data_parameters_and_the_baseline() -> None:
    run = TrainingRun(
        **resource_fields("orgs/acme/trainings/t/runs/1"),
        spec=SEED,
        dataset_version="orgs/acme/datasets/d/versions/1",
        dataset_digest="ab" * 32,
        algorithm_version=TABULAR.name,
        parameters={"label_column": "a|b`", "iterations": 5},
    )
    results = {"accuracy": 0.9, "baseline.accuracy": 0.5, "macro_f1": 0.8}
    card = algorithm_card(run, "orgs/acme/modelProjects/p/versions/1", "cd" * 32, 7, results, {"scikit-learn": "1"})
    for part in (
        "# p, version 1",
        "ab" * 32,
        "| accuracy | 0.9 | 0.5 |",
        "| macro_f1 | 0.8 | – |",
        "| iterations | `5` |",
        r"| label_column | `\"a\u007cb\u0060\"` |".replace('\\"', '"'),
        "a fifth of its rows",
        "## Limits",
    ):
        assert part in card


def test_roles_are_those_of_the_catalogue() -> None:
    assert {role for entry in ENTRIES for role in entry.columns.values()} <= set(Role)
