"""Drawn scenes, the network and its answers, average precision, thresholds. Here nothing is trained to be good."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from libs.common.domain import DomainError
from services.dataset.engines.boxes import iou
from services.dataset.engines.detection import scenes as drawing
from services.dataset.engines.detection.acceptance import Judged, judge, report
from services.dataset.engines.detection.average_precision import Found, average_precision, hits
from services.dataset.engines.detection.builtin import (
    CARD,
    WEIGHTS,
    BuiltIn,
    load_detector,
    save_detector,
)
from services.dataset.engines.detection.network import Network, corners
from services.dataset.engines.detection.proposing import propose
from services.dataset.engines.detection.repeats import without_repeats
from services.dataset.engines.detection.scenes import COLOUR_NAMES, SHAPE_NAMES, SIDE, Scene, draw, held_out
from services.dataset.engines.detection.training import _truth, _turned, _word_loss


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def scenes(count: int, allowed: np.ndarray, seed: int = 5) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [draw(rng, allowed) for _ in range(count)]


def eager() -> Network:
    """Untrained, but sees an object in every corner."""
    torch.manual_seed(3)
    network = Network()
    torch.nn.init.constant_(network.centre.bias, 1.0)  # pyrefly: ignore[bad-argument-type]
    return network


def test_the_same_seed_draws_the_same() -> None:
    for one, other in zip(scenes(3, ~held_out()), scenes(3, ~held_out()), strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.boxes, other.boxes)
    assert not np.array_equal(scenes(1, ~held_out(), 6)[0].image, scenes(1, ~held_out())[0].image)


def test_boxes_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, what is red can be told from what is grey by how far its channels are apart."""
    monkeypatch.setattr(drawing, "_MOST_NOISE", 0.0)
    red = np.zeros_like(held_out())
    red[0] = True
    for scene in scenes(10, red):
        y, x = np.nonzero(np.ptp(scene.image.astype(int), axis=2) > 60)
        assert scene.boxes[:, :2].min(0).tolist() == [x.min(), y.min()]
        assert scene.boxes[:, 2:].max(0).tolist() == [x.max() + 1, y.max() + 1]


def test_training_never_sees_held_out_pairs_but_all_words() -> None:
    unseen = held_out()
    assert (unseen.sum(0) == 2).all()
    assert (unseen.sum(1) == 2).all()
    drawn = np.zeros_like(unseen)
    for scene in scenes(60, ~unseen):
        drawn[scene.colours, scene.shapes] = True
    assert not (drawn & unseen).any()
    assert drawn.any(0).all()
    assert drawn.any(1).all()


def test_boxes_turn_with_the_image() -> None:
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[10:30, 50:90] = 255
    scene = Scene(image, np.array([[50, 10, 90, 30]], np.float32), np.array([0]), np.array([0]))
    for quarters in range(4):
        for mirrored in (False, True):
            turned = _turned(scene, quarters, mirrored)
            y, x = np.nonzero(turned.image[..., 0])
            assert turned.boxes[0].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_cells_learn_the_object_that_they_are_on() -> None:
    drawn = scenes(4, ~held_out())
    truth = _truth(drawn)
    for (image, row, column), box, shape in zip(truth.cells, truth.boxes, truth.shapes, strict=True):
        x, y = 4 * (column + 0.5), 4 * (row + 0.5)
        assert box[0] <= x <= box[2]
        assert box[1] <= y <= box[3]
        assert any(
            np.array_equal(box, other) and shape == kind
            for other, kind in zip(drawn[image].boxes, drawn[image].shapes, strict=True)
        )


def test_a_pair_that_training_lacks_is_no_negative() -> None:
    """A blue square says of other shapes that it is none of them, but nothing of the star, which is never blue."""
    blue, square, star = COLOUR_NAMES.index("blue"), SHAPE_NAMES.index("square"), SHAPE_NAMES.index("star")
    logits = torch.zeros(1, len(SHAPE_NAMES), requires_grad=True)
    absent = torch.from_numpy(held_out())[[blue]]
    assert absent[0, star]
    _word_loss(logits, torch.tensor([square]), absent).backward()
    assert logits.grad is not None
    assert ((logits.grad[0] == 0) == absent[0]).all()


def test_corners_are_pixels() -> None:
    sides = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 2, 2, 4)
    assert corners(sides)[0, 1, 0].tolist() == [4 * (0.5 - 1), 4 * (1.5 - 2), 4 * (0.5 + 3), 4 * (1.5 + 4)]


def test_regions_that_repeat_a_better_one_go() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [6, 0, 16, 10]], float)
    assert without_repeats(boxes, 0.6).tolist() == [0, 2, 3]


def test_boxes_stay_within_images_of_any_size() -> None:
    detector = BuiltIn(eager())
    for height, width in ((33, 70), (128, 128)):
        found = detector.detect([np.full((height, width, 3), 128, np.uint8)], ["object"])[0][0]
        assert len(found.boxes)
        assert (found.boxes >= 0).all()
        assert (found.boxes <= [width, height, width, height]).all()


def test_scores_are_products_and_prompts_may_be_chinese() -> None:
    image = scenes(1, ~held_out())[0].image
    detector = BuiltIn(eager())
    found, chinese, all_of_shape = detector.detect([image], ["red star", "红色的五角星", "star"])[0]
    assert np.array_equal(found.boxes, chinese.boxes)
    assert found.scores.max(initial=0) < all_of_shape.scores.max()
    shapes = detector.detect([image], [*SHAPE_NAMES, "object"])[0]
    # The probabilities of the shapes add up to 1; scores below 0.01 are left out.
    assert sum(one.scores.max(initial=0) for one in shapes[:-1]) >= shapes[-1].scores.max() - 0.01 * len(SHAPE_NAMES)


@pytest.mark.parametrize("prompt", ["", "car", "red star and circle", "stars without rings", "big star"])
def test_prompts_that_are_not_learnt_are_refused(prompt: str) -> None:
    with pytest.raises(DomainError, match="prompts") as refused:
        BuiltIn(Network()).detect([], [prompt])
    assert refused.value.reason == "INVALID_FIELD"


def test_weights_come_back_and_changed_ones_do_not(tmp_path: Path) -> None:
    network = eager()
    save_detector(network, tmp_path, {"seed": 1})
    image = scenes(1, ~held_out())[0].image
    before, after = (one.detect([image], ["object"])[0][0] for one in (BuiltIn(network), load_detector(tmp_path)))
    assert np.array_equal(before.boxes, after.boxes)
    weights = tmp_path / WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DomainError, match="is not what"):
        load_detector(tmp_path)
    weights.write_bytes(content)
    load_detector(tmp_path)
    (tmp_path / CARD).write_text(json.dumps([]))
    with pytest.raises(DomainError, match="is not what"):
        load_detector(tmp_path)
    (tmp_path / CARD).unlink()
    with pytest.raises(DomainError, match=f"lacks {CARD}"):
        load_detector(tmp_path)


def test_average_precision_by_hand() -> None:
    """Two objects; right, wrong, right: precision 1 up to a recall of 0.5, then 2/3. 51 levels are up to 0.5."""
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], float)
    boxes = np.array([[0, 0, 10, 9], [50, 50, 60, 60], [21, 0, 31, 10]], float)
    found = Found(boxes, np.array([0.9, 0.8, 0.7]))
    assert average_precision([found], [truth]) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision([Found(boxes[:1], np.ones(1))], [truth]) == pytest.approx(51 / 101)
    assert np.isnan(average_precision([found], [truth[:0]]))


def test_an_object_is_hit_once() -> None:
    truth = np.array([[0, 0, 10, 10]], float)
    assert hits(Found(np.repeat(truth, 2, 0), np.array([0.9, 0.8])), truth).tolist() == [True, False]
    assert hits(Found(truth * [1, 1, 1, 2.1], np.ones(1)), truth).tolist() == [False]
    assert iou(truth * [1, 1, 1, 2], truth).tolist() == [0.5]


def objects(*given: tuple[str, float, float]) -> list[dict[str, object]]:
    return [{"label": label, "box": [left, 0, 10, 10], "score": score} for label, left, score in given]


def test_proposals_are_judged_by_what_people_left() -> None:
    before = [objects(("star", 0, 0.9), ("star", 1, 0.8), ("ring", 50, 0.7)), objects(("star", 0, 0.3))]
    after = [objects(("star", 0, 0), ("star", 50, 0), ("ring", 90, 0)), []]
    judged = judge(before, after)
    assert dict(zip(judged.scores.tolist(), judged.right.tolist(), strict=True)) == {
        0.9: True,
        0.8: False,
        0.7: False,
        0.3: False,
    }
    assert judged.objects == 3


def test_the_threshold_is_where_the_lower_bound_will_do() -> None:
    """Above 0.5 all 100 are right, of the 50 below a half: 100 of 100 is at least 0.963 by Wilson."""
    scores = np.concatenate([np.full(100, 0.7), np.full(50, 0.3)])
    judged = Judged(scores, np.arange(150) < 125, objects=200)
    found = report(judged, 0.96)
    assert found["auto_accept_score"] == 0.35
    row = next(row for row in found["rows"] if row["score"] == 0.35)
    assert row["precision"]["value"] == 1.0
    assert row["precision"]["low"] == pytest.approx(0.963, abs=5e-4)
    assert row["recall"]["value"] == 0.5
    assert report(judged, 0.97)["auto_accept_score"] is None
    assert report(judged, 0.7)["auto_accept_score"] == 0.05


def test_three_right_boxes_are_no_proof() -> None:
    judged = Judged(np.full(3, 0.9), np.ones(3, bool), objects=0)
    assert report(judged, 0.9)["auto_accept_score"] is None
    assert report(judged, 0.9)["rows"][-1]["precision"] == {"value": None, "low": None, "high": None}
    assert report(judged, 0.9)["rows"][0]["recall"] == {"value": None, "low": None, "high": None}


class Known:
    """A detector that finds what it is told."""

    def __init__(self, **found: list[tuple[float, float]]) -> None:
        self._found = found

    def detect(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[list[Found]]:
        def answer(prompt: str) -> Found:
            given = np.array(self._found.get(prompt.replace(" ", "_"), [])).reshape(-1, 2)
            left = given[:, :1]
            return Found(np.concatenate([left, left * 0, left + 10, left * 0 + 5], axis=1), given[:, 1])

        return [[answer(prompt) for prompt in prompts] for _ in images]


def test_proposals_leave_out_what_the_request_leaves_out() -> None:
    detector = Known(red=[(0, 0.9), (50, 0.8), (90, 0.2)], triangle=[(1, 0.7), (50, 0.4)], ring=[(70, 0.6)])
    (found,) = propose(detector, [np.zeros((9, 9, 3), np.uint8)], ["red", "ring"], ["triangle"], 0.3)
    # At 0 is a triangle; at 50 there is rather none; what is at 90 has too low a score.
    assert found == [
        {"label": "red", "box": [50, 0, 10, 5], "score": 0.8},
        {"label": "ring", "box": [70, 0, 10, 5], "score": 0.6},
    ]


def test_proposals_are_of_the_form_that_is_judged() -> None:
    image = scenes(1, ~held_out())[0].image
    found = propose(BuiltIn(eager()), [image, image], ["star"], [], 0.02)
    assert found[0]
    judged = judge(found, [found[0], []])
    assert judged.objects == len(found[0])
    assert judged.right.sum() == len(found[0])
