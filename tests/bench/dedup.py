"""Near-duplicate signatures: ours beside datasketch, from text to signature, one core each, in the same run.

    python -m tests.bench.dedup            # writes build/bench/dedup.json

The documents are the docstrings of this Python environment, joined to two kilobytes; some of them come again with a few
words changed. Both sides get the same text, take the same word 5-shingles and 128 permutations; rounds are interleaved.
The recall is measured on the planted pairs, by the definition in plain Python and not by our own hashes; so is every
merge. The clusters are computed with 1, 2 and 4 processes.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os

# One core each, whatever thread pools a library would like to open.
os.environ["RAYON_NUM_THREADS"] = "1"

import platform
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from datasketch import MinHash

from deploy.demo import corpus
from services.dataset.engines.alike import Alike, find_repeats
from services.dataset.engines.minhash import PERMUTATIONS, RECALL, band_hashes, choose_banding, set_hashes
from services.dataset.engines.shingles import SHINGLE_WORDS, shingle_hashes
from tests.bench.report import FOLDER, save

# Characters of a document.
SIZE = 2048
PLANTED = 2000
# Share of the words that a planted copy has changed: two in a hundred leave a similarity of about 0.83.
CHANGED = 0.018
# Pairs from here on must be found.
SIMILAR = 0.83
THRESHOLD = 0.8
ROUNDS = 8
SLICE = 2500
# Of a slice, because the peer is so much slower.
PEER_SLICE = 500
WORKERS = (1, 2, 4)
SHARD = 1024

_WORD = re.compile(r"\w+")


def documents() -> tuple[list[str], list[tuple[int, int]]]:
    """Two kilobytes each, and which pairs are planted."""
    built = corpus.build(FOLDER / "corpus", 100_000, 1)
    texts: list[str] = []
    text = ""
    with Path(built.path).open() as file:
        for line in file:
            text += json.loads(line)["text"] + "\n"
            if len(text) >= SIZE:
                texts.append(text[:SIZE])
                text = ""
    rng = random.Random(1)
    vocabulary = sorted(set(_WORD.findall(" ".join(texts[:200]))))
    # A text of few words has too few shingles for its similarity to mean anything.
    wordy = [at for at, text in enumerate(texts) if len(_WORD.findall(text)) >= 100]
    pairs: list[tuple[int, int]] = []
    for at in rng.sample(wordy, min(PLANTED, len(wordy))):
        copy = _WORD.sub(
            lambda found: rng.choice(vocabulary) if rng.random() < CHANGED else found[0],
            texts[at],
        )
        pairs.append((at, len(texts)))
        texts.append(copy)
    return texts, pairs


def shingles(text: str) -> set[str]:
    """The definition."""
    words = _WORD.findall(text.casefold())
    return {" ".join(words[at : at + SHINGLE_WORDS]) for at in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def similarity(one: str, other: str) -> float:
    """Jaccard similarity by the definition."""
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


def sign(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What ours computes of a shard: hashes of sets, (n,), and of bands, (bands, n)."""
    hashes, offsets = shingle_hashes(texts)
    return set_hashes(hashes, offsets), band_hashes(hashes, offsets, choose_banding(THRESHOLD))


def peer(texts: Sequence[str]) -> list[MinHash]:
    """The same with datasketch, in the way that its documentation recommends for many texts."""
    return MinHash.bulk(([shingle.encode() for shingle in shingles(text)] for text in texts), num_perm=PERMUTATIONS)


def rate(function: Callable[[Sequence[str]], Any], texts: Sequence[str]) -> float:
    """Documents a CPU second."""
    start = time.process_time()
    function(texts)
    return len(texts) / (time.process_time() - start)


def clusters(texts: list[str], workers: int) -> list[Alike]:
    """The repeats that so many processes find."""
    shards = [texts[start : start + SHARD] for start in range(0, len(texts), SHARD)]
    with ProcessPoolExecutor(workers) as pool:
        signed = list(pool.map(sign, shards))
    sets, bands = np.concatenate([one for one, _ in signed]), np.concatenate([two for _, two in signed], axis=1)
    return find_repeats(sets, bands, THRESHOLD, lambda rows: [texts[row] for row in rows])


def measure() -> dict[str, Any]:
    """The whole benchmark."""
    texts, pairs = documents()
    size = statistics.fmean(len(text.encode()) for text in texts)
    print(f"{len(texts):,} documents of {size:,.0f} bytes, {len(pairs):,} planted pairs", flush=True)
    for warm in (sign, peer):
        warm(texts[:100])
    rounds: list[dict[str, float]] = []
    for number in range(ROUNDS):
        start = number * SLICE % max(1, len(texts) - SLICE)
        part = texts[start : start + SLICE]
        sides = [("ours", sign, part), ("datasketch", peer, part[:PEER_SLICE])]
        found = {name: rate(function, some) for name, function, some in (sides if number % 2 else reversed(sides))}
        rounds.append({name: round(value, 1) for name, value in sorted(found.items())})
        print(f"round {number + 1} of {ROUNDS}: {', '.join(f'{k} {v:,.0f}/s' for k, v in found.items())}", flush=True)
    wanted = [pair for pair in pairs if similarity(texts[pair[0]], texts[pair[1]]) >= SIMILAR]
    results, seconds = {}, {}
    for workers in WORKERS:
        began = time.perf_counter()
        results[workers] = clusters(texts, workers)
        seconds[workers] = time.perf_counter() - began
        print(f"{workers} workers: {len(results[workers]):,} repeats in {seconds[workers]:.1f} s", flush=True)
    repeats = results[1]
    kept = {repeat.row: repeat.other for repeat in repeats}
    recall = sum(kept.get(one, one) == kept.get(other, other) for one, other in wanted) / len(wanted)
    ours, peers = (statistics.median(row[name] for row in rounds) for name in ("ours", "datasketch"))
    banding = choose_banding(THRESHOLD)
    return {
        "name": "dedup",
        "unit": "documents/s/core",
        "ours": round(ours, 1),
        "peer": round(peers, 1),
        "ratio": round(ours / peers, 2),
        "peer_name": "datasketch MinHash.bulk",
        "rounds": rounds,
        "figures": {
            "recall": round(recall, 5),
            "recall_expected_at_0.83": round(banding.recall(SIMILAR), 5),
            "pairs_wanted": len(wanted),
            "false_merges": _false_merges(texts, repeats),
            "repeats": len(repeats),
            "same_clusters": float(all(result == repeats for result in results.values())),
            "documents": len(texts),
            "bytes_a_document": round(size, 1),
            "megabytes_per_second_per_core": round(ours * size / 1e6, 1),
            "load_average": round(os.getloadavg()[0], 2),
        }
        | {f"seconds_with_{workers}_workers": round(taken, 2) for workers, taken in seconds.items()},
        "switched_on": {
            "ours": f"word {SHINGLE_WORDS}-shingles, {banding.bands} bands of {banding.rows}, chosen for a recall of"
            f" {RECALL} at {THRESHOLD}; hash of the whole set",
            "datasketch": f"the same shingles as a Python set of bytes, {PERMUTATIONS} permutations, no bands",
        },
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in ("numpy", "rensa", "datasketch")},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _false_merges(texts: list[str], repeats: list[Alike]) -> int:
    """Repeats that no text of their cluster explains: by the definition nothing there is as similar as is claimed."""
    members: dict[int, list[int]] = {}
    for repeat in repeats:
        members.setdefault(repeat.other, [repeat.other]).append(repeat.row)
    sets = {row: shingles(texts[row]) for rows in members.values() for row in rows}

    def explained(repeat: Alike) -> bool:
        own = sets[repeat.row]
        others = (sets[row] for row in members[repeat.other] if row != repeat.row)
        return any(len(own & other) / len(own | other) >= THRESHOLD for other in others)

    return sum(not explained(repeat) for repeat in repeats)


def main() -> None:
    """Runs the benchmark."""
    report = measure()
    path = save(report)
    figures = report["figures"]
    print(
        f"{report['ours']:,.0f} of {report['peer']:,.0f} documents/s/core: {report['ratio']},"
        f" recall {figures['recall']}, {figures['false_merges']} false merges -> {path}"
    )


if __name__ == "__main__":
    main()
