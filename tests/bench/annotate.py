"""The built-in detector: how well it finds pairs of colour and shape that it never saw together, and how fast.

    python -m tests.bench.annotate            # writes build/bench/annotate.json

The detector is trained on drawn scenes without a quarter of the pairs, then asked for all 64 pairs in scenes that have
all of them. The figure is the mean over pairs of AP50 as COCO has it, against exact boxes. The peer is what people
write without a model: gates of hue and rules for contours, made for these very colours and shapes, so nothing is unseen
to it. Both see the same images, on one core, rounds interleaved.
"""

from __future__ import annotations

import argparse
import os

# One core: threads that wait for each other burn the time of whatever else runs.
os.environ["OMP_NUM_THREADS"] = "1"

import datetime
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from services.dataset.engines.detection.average_precision import Found
from services.dataset.engines.detection.builtin import BuiltIn, load_detector, save_detector
from services.dataset.engines.detection.measuring import PROMPTS, ap50, unseen_scenes
from services.dataset.engines.detection.scenes import COLOUR_NAMES, SHAPE_NAMES, held_out
from services.dataset.engines.detection.training import Recipe, train
from tests.bench.report import FOLDER, save

SCENES = 400
ROUNDS = 4
# Another seed than that of training: no scene comes twice.
SEED = 99
TARGET = 0.80
THREADS = 1

# Where one colour ends and the next begins, in OpenCV's hue (half degrees); above the last comes red again.
_GATES = (7.5, 22, 43, 76, 102, 127, 161)
_LEAST_AREA = 40.0
_LEAST_COLOUR, _MOST_BLACK = 100, 60


def rules(image: np.ndarray) -> list[Found]:
    """The peer: boxes for every prompt. A rule has no probability; large contours come first."""
    hue, saturation, value = cv2.split(cv2.cvtColor(cv2.medianBlur(image, 5), cv2.COLOR_RGB2HSV))
    colour = np.digitize(hue, _GATES) % len(_GATES)
    colour[(saturation < _LEAST_COLOUR) | (value < _LEAST_COLOUR)] = -1
    colour[value < _MOST_BLACK] = len(_GATES)
    found: list[list[tuple[float, list[float]]]] = [[] for _ in PROMPTS]
    for number in range(len(COLOUR_NAMES)):
        contours, tree = cv2.findContours((colour == number).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        for contour, (_, _, hole, parent) in zip(contours, [] if tree is None else tree[0], strict=True):
            area = cv2.contourArea(contour)
            if parent < 0 and area >= _LEAST_AREA:
                x, y, width, height = cv2.boundingRect(contour)
                hollow = hole >= 0 and cv2.contourArea(contours[hole]) > 0.1 * area
                prompt = number * len(SHAPE_NAMES) + SHAPE_NAMES.index("ring" if hollow else rule_of(contour, area))
                found[prompt].append((area, [x, y, x + width, y + height]))
    return [as_found(boxes) for boxes in found]


def rule_of(contour: np.ndarray, area: float) -> str:
    """The shape of a contour without a hole, by what it fills of its hull and of the smallest rectangle around it."""
    solidity = area / cv2.contourArea(cv2.convexHull(contour))
    _, sides, _ = cv2.minAreaRect(contour)
    filled, aspect = area / (sides[0] * sides[1]), max(sides) / min(sides)
    # Half-way between what these shapes give, drawn one or two to a scene.
    if solidity < 0.85:
        return "star" if filled < 0.6 else "cross"
    if aspect > 1.45:
        return "rectangle" if filled > 0.83 else "ellipse"
    if filled < 0.68:
        return "triangle"
    return "circle" if filled < 0.855 else "square"


def as_found(boxes: list[tuple[float, list[float]]]) -> Found:
    """In order of falling score."""
    ordered = sorted(boxes, reverse=True)
    corners = np.array([box for _, box in ordered], np.float64).reshape(-1, 4)
    return Found(corners, np.array([1 - 1 / area for area, _ in ordered]))


def trained(recipe: Recipe) -> tuple[BuiltIn, dict[str, float]]:
    """A detector as it is after storing and loading, and what it cost."""

    def progress(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"step {step} of {recipe.steps}, loss {loss:.3f}", flush=True)

    wall, cpu = time.perf_counter(), time.process_time()
    network = train(recipe, progress)
    cost = {"training_seconds": time.perf_counter() - wall, "training_cpu_seconds": time.process_time() - cpu}
    folder = FOLDER / "detector"
    save_detector(network, folder, {"recipe": vars(recipe), "trained_on": "drawn scenes of coloured shapes"})
    return load_detector(folder), {name: round(seconds, 1) for name, seconds in cost.items()}


def measure(recipe: Recipe) -> dict[str, Any]:
    """The whole benchmark."""
    detector, cost = trained(recipe)
    scenes = unseen_scenes(SCENES, SEED)
    sides: dict[str, Callable[[Sequence[np.ndarray]], list[list[Found]]]] = {
        "ours": lambda images: detector.detect(images, PROMPTS),
        "peer": lambda images: [rules(image) for image in images],
    }
    found: dict[str, list[list[Found]]] = {name: [] for name in sides}
    rounds: list[dict[str, float]] = []
    for images in np.array_split([scene.image for scene in scenes], ROUNDS):
        row: dict[str, float] = {}
        for name, detect in sides.items():
            began = time.perf_counter()
            found[name] += detect(list(images))
            row[name] = round(len(images) / (time.perf_counter() - began), 1)
        rounds.append(row)
    return report(recipe, cost, rounds, {name: ap50(boxes, scenes) for name, boxes in found.items()})


def report(
    recipe: Recipe, cost: dict[str, float], rounds: list[dict[str, float]], precision: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What is written."""
    unseen = held_out()

    def mean(name: str, pairs: np.ndarray) -> float:
        return round(float(np.nanmean(precision[name][pairs])), 4)

    ours, peer = mean("ours", unseen), mean("peer", unseen)
    return {
        "name": "annotate",
        "unit": "AP50, mean over pairs of colour and shape never seen together",
        "ours": ours,
        "peer": peer,
        "ratio": round(ours / peer, 2),
        "peer_name": "gates of hue and contour rules (OpenCV), written for these shapes",
        "target": TARGET,
        "rounds": rounds,
        "figures": {
            "ap50_unseen": ours,
            "ap50_seen": mean("ours", ~unseen),
            "ap50_unseen_worst_pair": round(float(np.nanmin(precision["ours"][unseen])), 4),
            "peer_ap50_other_pairs": mean("peer", ~unseen),
            "images_per_second": round(float(np.median([row["ours"] for row in rounds])), 1),
            "peer_images_per_second": round(float(np.median([row["peer"] for row in rounds])), 1),
            **cost,
            "scenes_trained": recipe.scenes,
            "steps": recipe.steps,
            "scenes_tested": SCENES,
            "prompts": len(PROMPTS),
            "unseen_pairs": int(unseen.sum()),
        },
        "switched_on": f"{THREADS} thread, one image at a time, all prompts in each",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} when done",
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    torch.set_num_threads(THREADS)
    cv2.setNumThreads(THREADS)
    written = measure(Recipe(steps=parser.parse_args().steps))
    path = save(written)
    figures = written["figures"]
    print(
        f"AP50 unseen {figures['ap50_unseen']}, seen {figures['ap50_seen']}, rules {written['peer']},"
        f" {figures['images_per_second']} images/s -> {path}"
    )


if __name__ == "__main__":
    main()
