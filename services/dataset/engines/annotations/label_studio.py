"""Label Studio's JSON, https://labelstud.io/guide/task_format: rectangles in percent of the image, choices, text areas.

Every annotation of a task that was not cancelled is a row; a task without one is a row without answers. Predictions are
not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from libs.compute.versions import Row
from services.dataset.engines.annotations.pictures import Object, checked_box, number, picture_of, side
from services.dataset.engines.losses import Inexpressible

UNLISTED = "Label Studio keeps the list of labels in the project, not beside its tasks"
_ANSWERS = ("objects", "choices", "texts")


def read_task(task: Row) -> Iterator[Row | str]:
    """The rows of a task, and in words what of it cannot be kept. Raises `Inexpressible` if it is no task."""
    data = task.get("data")
    if not isinstance(data, dict):
        raise Inexpressible("data: not an object")
    taken = sorted({*_ANSWERS, "categories"} & data.keys())
    if taken:
        raise Inexpressible(f"data.{taken[0]}: has a meaning of its own here")
    given = task.get("annotations") or []
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise Inexpressible("annotations: not a list of objects")
    kept = [one for one in given if not one.get("was_cancelled")]
    for annotation in kept or [{}]:
        yield from _read_annotation(data, annotation)


def _read_annotation(data: Row, annotation: Row) -> Iterator[Row | str]:
    row: Row = dict(data)
    if "image" in data:
        row["objects"] = []
    results = annotation.get("result") or []
    if not isinstance(results, list):
        raise Inexpressible("annotations: result is not a list")
    problems: list[str] = []
    for at, result in enumerate(results):
        try:
            _read_result(row, result)
        except Inexpressible as reason:
            problems.append(f"result[{at}]: {reason}")
    yield row
    yield from problems


def _read_result(row: Row, result: Any) -> None:
    if not isinstance(result, dict) or not isinstance(result.get("value"), dict):
        raise Inexpressible("has no value")
    kind, value = result.get("type"), result["value"]
    if kind == "rectanglelabels":
        row.setdefault("objects", []).extend(_read_rectangle(row, result, value))
    elif kind == "choices":
        _answer(row, "choices", result, value.get("choices"))
    elif kind == "textarea":
        texts = value.get("text")
        _answer(row, "texts", result, [texts] if isinstance(texts, str) else texts)
    else:
        raise Inexpressible(f"{str(kind)[:40]}: is not read")


def _read_rectangle(row: Row, result: Row, value: Row) -> list[Object]:
    sides = {}
    for name in ("width", "height"):
        sides[name] = side(result.get(f"original_{name}"), f"original_{name}") or side(row.get(name), name)
        if sides[name] is None:
            raise Inexpressible(f"original_{name} is missing")
        if row.setdefault(name, sides[name]) != sides[name]:
            raise Inexpressible(f"original_{name}: differs from that of the image")
    labels = value.get("rectanglelabels")
    if not isinstance(labels, list) or not labels or not all(isinstance(one, str) and one for one in labels):
        raise Inexpressible("has no label")
    percents = [number(value.get(name), name) for name in ("x", "y", "width", "height")]
    pixels = [share * sides[name] / 100 for share, name in zip(percents, ("width", "height") * 2, strict=True)]
    box = checked_box(pixels, "rectangle", sides["width"], sides["height"])
    meta = result.get("meta")
    beside = dict(meta) if isinstance(meta, dict) else {}
    if value.get("rotation"):
        beside["rotation"] = number(value["rotation"], "rotation")
    return [{**beside, "label": label, "box": box} for label in labels]


def _answer(row: Row, column: str, result: Row, answers: Any) -> None:
    name = result.get("from_name")
    if not isinstance(name, str) or not name:
        raise Inexpressible("from_name is missing")
    if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
        raise Inexpressible("not a list of texts")
    row.setdefault(column, {}).setdefault(name, []).extend(answers)


def write_task(row: Row) -> tuple[Row, list[str]]:
    """A row as a task with one annotation. Raises `Inexpressible`."""
    about = "image" if {"image", "file_name"} & row.keys() else "text"
    results = [*_rectangles(row), *_answers(row, "choices", "choices", "choices", about)]
    results += _answers(row, "texts", "textarea", "text", about)
    data = {name: value for name, value in row.items() if name not in (*_ANSWERS, "categories")}
    for at, result in enumerate(results, 1):
        result["id"] = f"r{at}"
    changes = [UNLISTED] if row.get("categories") else []
    return {"data": data, "annotations": [{"result": results}]}, changes


def _rectangles(row: Row) -> list[Row]:
    if not row.get("objects"):
        return []
    picture = picture_of(row)
    width, height = picture.sized("Label Studio")
    found = []
    for one in picture.objects:
        x, y, across, down = one["box"]
        beside = {name: value for name, value in one.items() if name not in ("label", "box", "rotation")}
        found.append(
            {
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "x": 100 * x / width,
                    "y": 100 * y / height,
                    "width": 100 * across / width,
                    "height": 100 * down / height,
                    "rotation": one.get("rotation", 0),
                    "rectanglelabels": [one["label"]],
                },
                **({"meta": beside} if beside else {}),
            }
        )
    return found


def _answers(row: Row, column: str, kind: str, field: str, about: str) -> list[Row]:
    given = row.get(column) or {}
    if not isinstance(given, dict) or not all(
        isinstance(answers, list) and all(isinstance(one, str) for one in answers) for answers in given.values()
    ):
        raise Inexpressible(f"{column}: not lists of texts by name")
    return [
        {"type": kind, "from_name": name, "to_name": about, "value": {field: answers}}
        for name, answers in given.items()
    ]
