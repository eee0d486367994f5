"""Object detection on drawn scenes: circles, squares and triangles of any colour on noise."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from libs.compute.context import EngineError
from services.training.engines.algorithms.detection import ALGORITHM
from services.training.engines.algorithms.detection_network import iou_loss, targets
from services.training.engines.algorithms.interface import Table, Trained
from tests.integration.training.algorithms import (
    Recorder,
    parameters,
    refusal,
    require_cancel,
    require_damage_is_seen,
    require_reports,
    require_reproducible,
    table,
)

_SIDE = 64
_QUICK = parameters(ALGORITHM, image_size=32, channels=8, epochs=1, batch_size=8)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads may differ in their last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scene(random: np.random.Generator) -> tuple[bytes, list[dict[str, Any]]]:
    """A picture and its objects, which do not touch."""
    image = Image.fromarray(random.integers(90, 150, (_SIDE, _SIDE, 3), dtype=np.uint8))
    draw, objects = ImageDraw.Draw(image), []
    for _ in range(random.integers(1, 4)):
        size = int(random.integers(14, 28))
        x, y = (int(place) for place in random.integers(0, _SIDE - size, 2))
        if any(
            abs(x - a) < max(size, w) and abs(y - b) < max(size, h) for a, b, w, h in (one["box"] for one in objects)
        ):
            continue
        label = str(random.choice(["circle", "square", "triangle"]))
        # Far from the grey of the ground in every channel.
        colour = tuple(int(value) for value in random.choice([10, 30, 200, 245], 3))
        if label == "circle":
            draw.ellipse((x, y, x + size - 1, y + size - 1), fill=colour)
        elif label == "square":
            draw.rectangle((x, y, x + size - 1, y + size - 1), fill=colour)
        else:
            draw.polygon([(x + size // 2, y), (x, y + size - 1), (x + size - 1, y + size - 1)], fill=colour)
        objects.append({"label": label, "box": [x, y, size, size]})
    return png(image), objects


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def scenes(count: int, seed: int) -> Table:
    random = np.random.default_rng(seed)
    made = [scene(random) for _ in range(count)]
    media = {f"{number}.png": content for number, (content, _) in enumerate(made)}
    return table(
        [{"file_name": f"{number}.png", "objects": objects} for number, (_, objects) in enumerate(made)], media
    )


def with_objects(objects: Any, image: str = "a.png") -> Table:
    """Ten good rows and one with these objects."""
    good = {"file_name": "a.png", "objects": json.dumps([{"label": "circle", "box": [1, 1, 9, 9]}])}
    media = {"a.png": png(Image.new("RGB", (40, 30))), "bad.png": b"\x89PNG\r\n\x1a\n nothing"}
    return table([good] * 10 + [{"file_name": image, "objects": objects}], media)


@pytest.fixture(scope="module")
def trained() -> tuple[Trained, Recorder]:
    watch = Recorder()
    given = parameters(ALGORITHM, image_size=_SIDE, channels=24, epochs=10, batch_size=8)
    return ALGORITHM.train(scenes(160, 1), scenes(60, 2), given, 5, watch), watch


def test_it_finds_objects_that_the_mean_box_does_not(trained: tuple[Trained, Recorder]) -> None:
    results = trained[0].results
    # 0.80 with two seeds, and 0.0003 of the mean box.
    assert results["ap50"] > results["baseline.ap50"] + 0.4
    assert results["baseline.ap50"] < 0.1
    require_reports(trained[1])


def test_files_give_the_detector_back(trained: tuple[Trained, Recorder]) -> None:
    detector = ALGORITHM.load(trained[0].files)
    right = found = 0
    random = np.random.default_rng(3)
    made = [scene(random) for _ in range(10)]
    for (_, objects), boxes in zip(made, detector.predict([content for content, _ in made]), strict=True):
        for one in objects:
            right += 1
            near = [box for box in boxes if max(abs(a - b) for a, b in zip(box["box"], one["box"], strict=True)) < 6]
            found += any(box["label"] == one["label"] for box in near)
        assert [box["score"] for box in boxes] == sorted((box["score"] for box in boxes), reverse=True)
    assert found > right / 2
    assert detector.predict([]) == []
    require_damage_is_seen(ALGORITHM, trained[0].files)


def test_boxes_are_in_pixels_of_the_picture_whatever_its_size(trained: tuple[Trained, Recorder]) -> None:
    content, _ = scene(np.random.default_rng(8))
    small = Image.open(io.BytesIO(content))
    large = small.resize((2 * _SIDE, 2 * _SIDE), Image.Resampling.NEAREST)
    boxes, doubled = ALGORITHM.load(trained[0].files).predict([content, png(large)])
    assert len(boxes) == len(doubled) > 0
    for one, two in zip(boxes, doubled, strict=True):
        assert one["label"] == two["label"]
        assert np.allclose(np.multiply(2, one["box"]), two["box"], atol=4)


def test_one_seed_one_model() -> None:
    require_reproducible(ALGORITHM, scenes(20, 4), _QUICK)


def test_it_can_be_cancelled() -> None:
    require_cancel(ALGORITHM, scenes(30, 4), _QUICK)


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        (
            '[{"label": "circle", "box": [35, 2, 9, 9]}]',
            r"Row 11, column 'objects\[0\].box': .* outside the picture of 40 x 30",
        ),
        ('[{"label": "circle", "box": [5, 2, 0, 9]}]', r"Row 11, column 'objects\[0\].box': without area"),
        ('[{"label": "circle", "box": [5, 2, 9]}]', r"Row 11, column 'objects\[0\].box': not four numbers"),
        ('[{"label": "circle"}]', r"Row 11, column 'objects\[0\].box': not four numbers"),
        ('[{"label": " ", "box": [5, 2, 9, 9]}]', r"Row 11, column 'objects\[0\].label': empty"),
        ("[1]", "Row 11, column 'objects': not a list of objects"),
        ("{", "Row 11, column 'objects': not JSON"),
    ],
)
def test_bad_boxes_are_named(objects: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        ALGORITHM.train(with_objects(objects), None, _QUICK, 1, Recorder())


def test_bad_pictures_are_named() -> None:
    assert "Row 11, column 'file_name': not a picture" in refusal(ALGORITHM, with_objects("[]", "bad.png"), _QUICK)
    bomb = io.BytesIO()
    Image.new("1", (8000, 8000)).save(bomb, "PNG")
    with pytest.raises(EngineError, match="8000 x 8000 pixels"):
        ALGORITHM.load(ALGORITHM.train(scenes(12, 1), None, _QUICK, 1, Recorder()).files).predict([bomb.getvalue()])


def test_nothing_to_learn_is_refused() -> None:
    empty = table([{"file_name": "a.png", "objects": "[]"}] * 12, {"a.png": png(Image.new("RGB", (9, 9)))})
    assert refusal(ALGORITHM, empty, _QUICK) == "No row has an object to learn."
    assert "no column 'objects'" in refusal(ALGORITHM, table([{"file_name": "a.png"}]), _QUICK)
    assert refusal(ALGORITHM, table([], columns=("file_name", "objects")), _QUICK) == "The data have no rows."


def test_a_cell_learns_the_smallest_box_that_it_is_in() -> None:
    corners = torch.tensor([[0.0, 0.0, 16.0, 16.0], [4.0, 4.0, 12.0, 12.0]])
    labels, sides = targets(corners, torch.tensor([0, 1]), 16)
    # Middles are at 2, 6, 10, 14; the four inner cells are in both boxes and near both middles.
    assert labels.view(4, 4).tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert sides.view(4, 4, 4)[1, 2].tolist() == [6, 2, 2, 6]


def test_iou_loss_of_two_boxes_around_a_place() -> None:
    # 4 x 4 within 8 x 4: half of the union.
    loss = iou_loss(torch.tensor([[2.0, 2.0, 2.0, 2.0]]), torch.tensor([[4.0, 2.0, 4.0, 2.0]]))
    assert loss.item() == pytest.approx(np.log(2))
