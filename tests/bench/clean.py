"""Cleaning: ours beside datatrove and Data-Juicer, the same operators and thresholds, both cores for each, in one run.

    python -m tests.bench.clean            # writes build/bench/clean.json

The pages are made of the sentences of the documentation inside this Python environment: prose, lists, menus, pages that
repeat themselves, copies, copies with a few words changed. Beside datatrove runs `web-en` (Gopher, C4, FineWeb, masked
personal data, near-duplicates), beside Data-Juicer the filters of the BigScience corpus and near-duplicates. Every side
reads JSONL and writes what it keeps; ours imports and cleans, durably. Peers have environments of their own under
build/peers; their clock starts when everything is imported.

Which pages the filters keep is compared too: datatrove is run again with our words and ends of sentences in place of
spaCy's, so that what its words explain is known, and what they do not explain is counted.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import random
import re
import shutil
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import ray

from deploy.demo import corpus
from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from libs.compute.versions import read_rows
from services.dataset.domain.recipes import BUILT_IN, Recipe, read_recipe
from services.dataset.engines import cleaning, importing
from services.dataset.engines.quality import LANGUAGES
from services.dataset.engines.rules import WORD
from tests.bench.import_rows import Peak, uploaded
from tests.bench.peers import install
from tests.bench.report import FOLDER, ROOT, save

DATATROVE = ("datatrove[processing,io]==0.10.1", "spacy==3.8.18")
DATA_JUICER = ("py-data-juicer==1.6.1", "aiohttp")  # which it imports without asking for it
WORKERS = 2
# Of the corpus as datatrove and Data-Juicer get it, so that both cores have files to read.
FILES = 8
MEGABYTES = 100
# Of the pages: copies, and copies with two words in a hundred changed.
COPIES, CHANGED_COPIES = 0.03, 0.05
ROUNDS = 2
# `web-en` as far as datatrove has the same: it has no HTML stripper but trafilatura, no normaliser, and other masks.
LIKE_DATATROVE = read_recipe(
    {
        "steps": [
            *[step.operator for step in BUILT_IN["web-en"].steps if step.operator.endswith(("quality", "repetition"))],
            "personal_data",
            "near_duplicates",
        ]
    }
)
LIKE_DATA_JUICER = read_recipe(
    {
        "steps": [
            {"length": {"min_chars": 20, "max_chars": 100_000}},
            {"words": {"min_words": 20, "max_words": 100_000}},
            {"line_lengths": {"min_mean": 10, "min_longest": 10}},
            {"special_characters": {"max_share": 0.35}},
            {"word_repetition": {"run": 10, "max_share": 0.5}},
            {"character_repetition": {"run": 10, "max_share": 0.5}},
            "near_duplicates",
        ]
    }
)
_SENTENCE = re.compile(r"[A-Z][^.!?\n{}<>]{30,200}[.!?]")
_WORDS = re.compile(r"\w+")


def write_pages(folder: Path, megabytes: int) -> int:
    """Writes the corpus in `FILES` files and as one, pages.jsonl; gives the number of pages."""
    built = corpus.build(FOLDER / "corpus", 100_000, 1)
    rows = [orjson.loads(line)["text"] for line in Path(built.path).read_bytes().splitlines()]
    sentences = sorted({" ".join(found.split()) for text in rows for found in _SENTENCE.findall(text)})
    rng = random.Random(1)
    pages: list[str] = []
    size = 0
    while size < megabytes * 1_000_000:
        page = _page(rng, sentences, rows, pages)
        pages.append(page)
        size += len(page.encode())
    (folder / "parts").mkdir()
    with (folder / "pages.jsonl").open("wb") as whole:
        parts = [(folder / "parts" / f"{number}.jsonl").open("wb") for number in range(FILES)]
        for number, page in enumerate(pages):
            line = orjson.dumps({"id": str(number), "text": page}) + b"\n"
            whole.write(line)
            parts[number * FILES // len(pages)].write(line)
        for part in parts:
            part.close()
    return len(pages)


def _page(rng: random.Random, sentences: list[str], rows: list[str], pages: list[str]) -> str:
    """About two kilobytes of one kind or another."""
    kind = rng.random()
    if pages and kind < COPIES:
        return rng.choice(pages)
    if pages and kind < COPIES + CHANGED_COPIES:
        words = rng.choice(sentences).split()
        return _WORDS.sub(lambda found: rng.choice(words) if rng.random() < 0.018 else found[0], rng.choice(pages))
    if kind < 0.20:
        return "\n".join(rng.choices(rows, k=4))[:2048]
    if kind < 0.28:
        return "\n".join(f"- {sentence[:40]}" for sentence in rng.sample(sentences, 50))
    paragraphs = [" ".join(rng.sample(sentences, rng.randint(2, 6))) for _ in range(rng.randint(3, 6))]
    if kind < 0.36:
        paragraphs += rng.choices(paragraphs, k=3)
    if kind < 0.46:
        paragraphs[1:1] = ["Home", "About us", "Read our privacy policy.", rng.choice(sentences)[:25]]
    return "\n".join(paragraphs)


def peer(python: Path, script: str, options: dict[str, Any]) -> float:
    """Seconds that a peer took."""
    shutil.rmtree(options["target"], ignore_errors=True)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [str(python), str(ROOT / "tests" / "bench" / script), json.dumps(options)],
        capture_output=True,
        text=True,
        env={**os.environ, **offline},
        cwd=Path(options["target"]).parent,
    )
    if done.returncode:
        sys.exit(f"{script} failed:\n{done.stderr[-3000:]}")
    return float(json.loads((Path(options["target"]) / "seconds.json").read_text()))


def kept_by(*files: Path) -> set[int]:
    """The pages in the files that a peer wrote."""
    return {int(orjson.loads(line)["id"]) for file in files for line in file.read_bytes().splitlines()}


def ours(pages: Path, folder: Path, recipe: Recipe) -> tuple[float, float, set[int]]:
    """Seconds of import and cleaning together, peak memory in MiB, pages kept."""
    with uploaded(pages, folder) as (store, upload), Peak() as peak:
        grant = store.grant_sync(upload, "bench", 3600)
        spec = {"upload": upload, "upload_grant": grant, "file_name": pages.name, "format": "jsonl"}
        start = time.perf_counter()
        version = importing.run(LocalContext(spec, blobs_write=store, blobs_read=store))["manifest_digest"]
        cleaned = _clean(store, version, recipe)
        seconds = time.perf_counter() - start
        return seconds, peak.mebibytes, _ids(store, cleaned)


def _clean(store: BlobStore, version: str, recipe: Recipe) -> str:
    grant = store.grant_sync(version, "bench", 3600)
    spec = {"version": version, "grant": grant, "text_column": "text", "recipe": recipe.to_json()}
    return cleaning.run(LocalContext(spec, blobs_write=store, blobs_read=store))["manifest_digest"]


def _ids(store: BlobStore, version: str) -> set[int]:
    return {int(one) for batch in read_rows(store, version, ["id"]) for one in batch["id"].to_pylist()}


def without_duplicates(recipe: Recipe) -> Recipe:
    """Only what looks at one row, so that verdicts can be compared page by page."""
    return Recipe(tuple(step for step in recipe.steps if not step.operator.endswith("duplicates")), recipe.language)


def measure(folder: Path, megabytes: int, rounds: int) -> dict[str, Any]:
    """The whole benchmark."""
    trove = install("datatrove", DATATROVE)
    juicer = install("data-juicer", DATA_JUICER)
    number = write_pages(folder, megabytes)
    pages, parts = folder / "pages.jsonl", str(folder / "parts")
    size = pages.stat().st_size / 1e6
    print(f"{number:,} pages, {size:,.0f} MB", flush=True)
    base = {"workers": WORKERS, "words": "", "near": 0.8}
    for_trove = {**base, "source": parts, "target": str(folder / "datatrove")}
    for_juicer = {**base, "source": str(pages), "target": str(folder / "data-juicer")}
    found: list[dict[str, float]] = []
    peaks: list[float] = []
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        ours(pages, folder, LIKE_DATATROVE)  # workers are started and have imported what they need
        for at in range(rounds):
            web, peak, _ = ours(pages, folder, LIKE_DATATROVE)
            roots, other_peak, _ = ours(pages, folder, LIKE_DATA_JUICER)
            peaks += [peak, other_peak]
            seconds = {
                "ours_web": web,
                "datatrove": peer(trove, "clean_datatrove.py", for_trove),
                "ours_roots": roots,
                "data_juicer": peer(juicer, "clean_data_juicer.py", for_juicer),
            }
            found.append({name: round(number / taken, 1) for name, taken in seconds.items()})
            print(f"round {at + 1} of {rounds}: rows/s {found[-1]}", flush=True)
        compared = {
            "datatrove": _compare_datatrove(folder, trove, for_trove, number),
            "data_juicer": _compare_data_juicer(folder, juicer, for_juicer),
        }
    finally:
        ray.shutdown()

    def median(name: str) -> float:
        return statistics.median(row[name] for row in found)

    return {
        "name": "clean",
        "unit": "rows/s",
        "ours": median("ours_web"),
        "peer": median("datatrove"),
        "ratio": round(median("ours_web") / median("datatrove"), 2),
        "peer_name": "datatrove",
        "rounds": found,
        "figures": {
            "ratio_datatrove": round(median("ours_web") / median("datatrove"), 2),
            "ratio_data_juicer": round(median("ours_roots") / median("data_juicer"), 2),
            "ours_beside_data_juicer": median("ours_roots"),
            "data_juicer": median("data_juicer"),
            "rows": number,
            "megabytes": round(size, 1),
            "peak_mib": round(max(peaks), 1),
            "load_average": round(os.getloadavg()[0], 2),
        }
        | {f"{name}_{key}": value for name, one in compared.items() for key, value in one.items()},
        "switched_on": {
            "ours": "import (SHA-256 a row, synced); " + ", ".join(s.operator for s in LIKE_DATATROVE.steps),
            "ours_beside_data_juicer": ", ".join(s.operator for s in LIKE_DATA_JUICER.steps),
            "datatrove": "the same four filters with their defaults, PIIFormatter, MinHash 16 x 8 without verification",
            "data_juicer": "the same filters and thresholds, document_minhash_deduplicator 16 x 8, np 2, no tracer",
        },
        "versions": {
            "python": platform.python_version(),
            "datatrove": DATATROVE[0],
            "data_juicer": DATA_JUICER[0],
            **{package: importlib.metadata.version(package) for package in ("ray", "numpy", "pyarrow")},
        },
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _compare_datatrove(folder: Path, python: Path, options: dict[str, Any], number: int) -> dict[str, float]:
    """Pages that the filters alone keep: ours, datatrove's of the last round, and datatrove's with our words."""
    mine = ours(folder / "pages.jsonl", folder, without_duplicates(LIKE_DATATROVE))[2]
    filtered = Path(options["target"]) / "filtered"
    theirs = kept_by(*filtered.glob("*.jsonl"))
    words = [WORD.pattern, LANGUAGES["en"].sentence_end.pattern]
    seconds = peer(python, "clean_datatrove.py", {**options, "words": words})
    with_our_words = kept_by(*filtered.glob("*.jsonl"))
    return _differences(mine, theirs) | {
        "differences_that_words_do_not_explain": len(mine ^ with_our_words),
        "rows_per_second_with_our_words": round(number / seconds, 1),
    }


def _compare_data_juicer(folder: Path, python: Path, options: dict[str, Any]) -> dict[str, float]:
    mine = ours(folder / "pages.jsonl", folder, without_duplicates(LIKE_DATA_JUICER))[2]
    peer(python, "clean_data_juicer.py", {**options, "near": 0})
    theirs = kept_by(Path(options["target"]) / "kept.jsonl")
    texts = [orjson.loads(line)["text"] for line in (folder / "pages.jsonl").read_bytes().splitlines()]
    unexplained = [at for at in mine ^ theirs if (at in theirs) != _by_white_space(texts[at])]
    few = folder / "few.jsonl"
    few.write_bytes(b"".join((folder / "pages.jsonl").read_bytes().splitlines(keepends=True)[:100]))
    start = peer(python, "clean_data_juicer.py", {**options, "source": str(few)})
    return _differences(mine, theirs) | {
        "differences_that_words_do_not_explain": len(unexplained),
        "seconds_of_100_rows": round(start, 2),
    }


def _by_white_space(text: str) -> bool:
    """What Data-Juicer's definitions say where they differ from ours: words lie between white space and are stripped of
    digits and punctuation; special characters are those of ASCII (and a list that these pages have none of).
    """
    special = string.punctuation + string.digits + string.whitespace
    words = [word for word in (word.strip(special).lower() for word in text.split()) if word]
    runs = Counter(tuple(words[at : at + 10]) for at in range(len(words) - 9))
    again = sum(count for count in runs.values() if count > 1)
    share = sum(character in special for character in text) / len(text)
    return len(text.split()) >= 20 and again <= 0.5 * runs.total() and share <= 0.35


def _differences(mine: set[int], theirs: set[int]) -> dict[str, float]:
    return {
        "kept_by_both": len(mine & theirs),
        "kept_by_ours_only": len(mine - theirs),
        "kept_by_peer_only": len(theirs - mine),
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=MEGABYTES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        report = measure(Path(folder), given.megabytes, given.rounds)
    path = save(report)
    print(json.dumps(report["figures"], indent=2))
    print(f"{report['ours']:,.0f} of {report['peer']:,.0f} rows/s: {report['ratio']} -> {path}")


if __name__ == "__main__":
    main()
