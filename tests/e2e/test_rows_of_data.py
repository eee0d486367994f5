"""What the data layer does, row by row of its list, on real files, by the command line, which speaks HTTP.

The same RPCs over gRPC are in tests/integration/dataset.
"""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.data import data_folder
from tests.mesh import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


class Shell(Protocol):
    """Types a command; gives what it prints."""

    def __call__(self, line: str, typed: str = "") -> str: ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def run(mesh: Mesh, folder: Path) -> Shell:
    """Somebody who is logged in."""

    def type_(line: str, typed: str = "") -> str:
        done = mesh.typed(line, folder, typed)
        assert done.returncode == 0, f"$ {line}\n{done.stdout}{done.stderr}"
        return done.stdout

    type_(mesh.administrator_login())
    return type_


def said(run: Shell, line: str) -> Any:
    return json.loads(run(f"{line} --json"))


@pytest.fixture(scope="module")
def questions(run: Shell, folder: Path) -> str:
    """D2: 300 questions of GSM8K, compressed, with a line that somebody broke."""
    lines = (data_folder("eval/gsm8k") / "test_first_300.jsonl").read_text().splitlines()
    lines.insert(4, '{"question": "cut')
    (folder / "questions.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    shown = run("argosy dataset import questions.jsonl.gz -d questions")
    assert "300 out" in shown
    assert "line 5" in shown
    return "questions/v1"


def test_metadata_deletion_and_lock(run: Shell, questions: str) -> None:
    """D1, D3."""
    run('argosy dataset update questions --set display_name=GSM8K --set source=gsm8k --set labels=\'{"team": "a"}\'')
    found = said(run, "argosy dataset list --search gsm8k")
    assert [one["labels"] for one in found] == [{"team": "a"}]
    run("argosy dataset delete questions")
    assert not said(run, "argosy dataset list --search gsm8k")
    run("argosy dataset undelete questions")
    run("argosy dataset update questions --set locked=true")
    assert run("argosy dataset import questions.jsonl.gz -d questions 2>&1 || true").count("locked")
    run("argosy dataset update questions --set locked=false")


def test_versions(run: Shell, questions: str) -> None:
    """D4, D5: cleaned rows are a version beside the first, which comes back without a copy."""
    shown = run("argosy dataset clean questions --text-column question --recipe general")
    assert "300 rows in" in shown
    run(f"argosy dataset-version tag {questions} --add-tags raw")
    found = said(run, f"argosy dataset-version diff {questions} --base {questions}")
    assert found == {"common": "300"}
    run(f"argosy dataset roll-back questions --version {questions}")
    versions = said(run, "argosy dataset-version list --parent questions")
    assert versions[0]["content_digest"] == next(
        one["content_digest"] for one in versions if one.get("tags") == ["raw"]
    )


def test_profile_split_leakage_and_product(run: Shell, questions: str, folder: Path) -> None:
    """D10, D12."""
    run(f"argosy dataset profile {questions} --page profile.html")
    assert (folder / "profile.html").read_text().count("<svg") >= 2
    sides = "--train learned --test held --group question --text-column question"
    run(f"argosy dataset split {questions} {sides} --fraction 0.2")
    assert "0 of" in run("argosy dataset leakage learned held --text-column question")
    assert "(100.00%)" in run(f"argosy dataset leakage {questions} held --text-column question")
    run("argosy data-product create --id held --set dataset_version=held/v1 --set display_name=Held")
    assert [one["display_name"] for one in said(run, "argosy data-product list --search held")] == ["Held"]


def test_chinese_table(run: Shell, folder: Path) -> None:
    """D2, D5 on a table: CMMLU."""
    source = data_folder("eval/cmmlu") / "test" / "ancient_chinese.csv"
    (folder / "ancient.csv").write_bytes(source.read_bytes())
    run("argosy dataset import ancient.csv -d ancient --type table")
    shown = run("argosy dataset profile ancient")
    assert "Question" in shown
    assert "zh" in shown
    (folder / "long.yaml").write_text(
        "steps:\n  - drop_missing: {columns: [Question, Answer]}\n"
        '  - compute: {column: size, value: length(Question)}\n  - expression: {keep: "size > 15"}\n'
    )
    run("argosy dataset clean ancient --recipe long.yaml --text-column Question")
    found = said(run, "argosy dataset-version list --parent ancient")
    rows = list(csv.DictReader((folder / "ancient.csv").open(encoding="utf-8")))
    assert [int(one["row_count"]) for one in found] == [sum(len(row["Question"]) > 15 for row in rows), len(rows)]


def test_conversations_in_and_out(run: Shell, folder: Path) -> None:
    """D7: code of HumanEval as Alpaca, ShareGPT and back."""
    lines = (data_folder("eval/humaneval") / "HumanEval_first_60.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    alpaca = [{"instruction": row["prompt"], "input": "", "output": row["canonical_solution"]} for row in rows]
    (folder / "code.json").write_text(json.dumps(alpaca))
    run("argosy dataset import code.json --format alpaca -d code")
    run("argosy dataset export code --format sharegpt -o sharegpt.jsonl")
    run("argosy dataset import sharegpt.jsonl --format sharegpt -d shared")
    run("argosy dataset export shared --format alpaca -o again.jsonl")
    again = [json.loads(line) for line in (folder / "again.jsonl").read_text().splitlines()]
    assert [one["output"] for one in again] == [one["output"] for one in alpaca]


def test_people_answer(run: Shell, questions: str, folder: Path) -> None:
    """D8: items, answers at the terminal, a report, and rows again."""
    run("argosy work-project create --id moods --template sentiment")
    (folder / "moods.jsonl").write_text("\n".join(json.dumps({"text": f"text {n}"}) for n in range(4)))
    assert "4 items added" in run("argosy work add moods moods.jsonl")
    assert "4 answers" in run("argosy work annotate moods", "1\n2\n3\n1\n")
    assert "reliability" in run("argosy work report moods")
    run("argosy work export moods -o moods-done.jsonl")
    answers = [json.loads(line)["sentiment"] for line in (folder / "moods-done.jsonl").read_text().splitlines()]
    assert sorted(answers) == ["negative", "neutral", "positive", "positive"]


def test_photographs(run: Shell, folder: Path) -> None:
    """D6, D7, D9: photographs of COCO are changed with their boxes, exported, looked at by a detector, corrected."""
    source = data_folder("dataset/detection/coco_tiny")
    told = json.loads((source / "instances_val2017_60.json").read_text())
    names = {one["id"]: one["name"] for one in told["categories"]}
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for image in told["images"][:6]:
            archive.write(source / "images" / image["file_name"], image["file_name"])
            boxes = [one for one in told["annotations"] if one["image_id"] == image["id"]]
            objects = [{"label": names[one["category_id"]], "box": one["bbox"]} for one in boxes]
            row = {"file_name": image["file_name"], "objects": objects}
            with (folder / "metadata.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        archive.write(folder / "metadata.jsonl", "metadata.jsonl")
    run("argosy dataset import photos.zip -d photos --type image")
    (folder / "turn.yaml").write_text("seed: 1\nsteps: [flip, {rotate: {max_degrees: 20}}]\n")
    assert "6 rows in, 12 out" in run("argosy dataset augment photos --recipe turn.yaml")
    for format_ in ("coco", "yolo", "voc", "label-studio"):
        run(f"argosy dataset export photos/v1 --format {format_} -o photos-{format_}")
        assert (folder / f"photos-{format_}").stat().st_size > 500

    run("argosy detector train shapes --steps 40")
    assert "red star" in run('argosy dataset targets "标出所有红色的五角星，不要圆环"')
    with zipfile.ZipFile(folder / "photos.zip") as full, zipfile.ZipFile(folder / "plain.zip", "w") as plain:
        for name in full.namelist():
            if name != "metadata.jsonl":
                plain.writestr(name, full.read(name))
    run("argosy dataset import plain.zip -d plain --type image")
    shown = run('argosy dataset annotate plain "every red thing" --detector shapes --least-score 0.01')
    assert "6 rows in, 6 out" in shown
    form = {"fields": [{"name": "objects", "kind": "WORK_FIELD_KIND_BOXES", "choices": ["red"]}]}
    run("argosy work-project create --id reds --body -", json.dumps({"form": form}))
    assert "6 items added" in run("argosy work add reds --version plain --proposals objects")
    assert "1 answers" in run("argosy work annotate reds --limit 1", "red 10 10 50 40; red 100 20 30 30\n")
    assert "what a model proposed for 1 items" in run("argosy work report reds --precision 0.9")
