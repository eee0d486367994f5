"""Small real data for algorithms of the catalogue, as rows of a dataset version."""

from __future__ import annotations

import ast
import csv
import io
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn import datasets

from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from services.training.domain.built_in import built_in
from services.training.domain.schemas import fill
from tests.data import data_folder
from tests.unit.training.samples import write_version

Rows = list[dict[str, Any]]


def wine() -> Rows:
    """178 wines of three growers, 13 numbers each; every seventh number is missing, the colour is a category."""
    bunch: Any = datasets.load_wine()
    names = [f"n{number}" for number in range(bunch.data.shape[1])]
    rows: Rows = []
    for at, (values, label) in enumerate(zip(bunch.data, bunch.target, strict=True)):
        row: dict[str, Any] = dict(zip(names, map(float, values), strict=True))
        del row[names[at % 7]]
        row["colour"] = "deep" if values[9] > 5 else "light"
        rows.append(row | {"grower": f"grower {label}"})
    return rows


def diabetes() -> Rows:
    """442 patients: ten numbers, and how the illness went on."""
    bunch: Any = datasets.load_diabetes()
    names = [str(name) for name in bunch.feature_names]
    return [
        dict(zip(names, map(float, values), strict=True)) | {"progress": float(target)}
        for values, target in zip(bunch.data, bunch.target, strict=True)
    ]


def digits(count: int) -> tuple[Rows, dict[str, bytes]]:
    """Written digits of 8 by 8 pixels as PNG files, with the digit as a number."""
    bunch: Any = datasets.load_digits()
    rows: Rows = []
    files: dict[str, bytes] = {}
    for number, (pixels, digit) in enumerate(zip(bunch.images[:count], bunch.target[:count], strict=True)):
        content = io.BytesIO()
        Image.fromarray((pixels * 15).astype(np.uint8)).save(content, "PNG")
        name = f"{number}.png"
        files[name] = content.getvalue()
        rows.append({"file_name": name, "media_type": "image", "digit": int(digit)})
    return rows, files


def docstrings(packages: tuple[str, ...] = ("asyncio", "unittest", "email", "tkinter")) -> Rows:
    """What stands above functions and classes of the standard library, and in which package."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [
        {"text": text, "package": package}
        for package in packages
        for path in sorted((folder / package).glob("*.py"))
        for text in _docstrings(path)
    ]


def _docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            text = ast.get_docstring(node)
            if text and len(text) > 40:
                yield text[:400]


def chinese_questions() -> Rows:
    """Questions of CMMLU in Chinese, of three subjects."""
    folder = data_folder("eval/cmmlu") / "test"
    rows: Rows = []
    for subject in ("chinese_driving_rule", "economics", "high_school_biology"):
        with (folder / f"{subject}.csv").open(encoding="utf-8") as file:
            rows += [{"text": row["Question"], "subject": subject} for row in csv.DictReader(file)]
    return rows


def algorithm_context(
    store: BlobStore, id: str, rows: Rows, files: dict[str, bytes] | None = None, **options: Any
) -> LocalContext:
    """A context of the engine for a built-in algorithm on these rows.

    Args:
        options: its parameters; `validation` (rows), `seed`, and what `LocalContext` takes.
    """
    entry = built_in(f"orgs/system/algorithms/{id}/versions/1")
    validation, seed = options.pop("validation", None), options.pop("seed", 7)
    kept = {name: options.pop(name) for name in ("cancel_when",) if name in options}
    given: dict[str, Any] = {
        "algorithm": {"code": entry.code, "parameters": fill(entry.parameters, options), "columns": entry.columns},
        "seed": seed,
        "threads": 1,
        "train": _source(store, rows, files),
    }
    if validation is not None:
        given["validation"] = _source(store, validation, files)
    return LocalContext(given, blobs_write=store, blobs_read=store, **kept)


def _source(store: BlobStore, rows: Rows, files: dict[str, bytes] | None) -> dict[str, str]:
    return {"grant": "", "manifest_digest": write_version(store, rows, files), "media_grant": "all" if files else ""}
