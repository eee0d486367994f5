"""Augmentation: what recipes say, what operators do, and that the same recipe always gives the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_engine_media_import import opened, rows_of

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from libs.common.errors import ArgosyError
from libs.compute.context import LocalContext
from services.dataset.domain.augmentation import AUGMENTATIONS, read_augmentation
from services.dataset.engines import augmenting
from services.dataset.engines.image_augmentation import IMAGE_OPERATIONS, clipped, plain
from services.dataset.engines.text_augmentation import TEXT_OPERATORS, augment_text
from services.dataset.handlers.augmentation import parse_augmentation
from tests.unit.dataset.test_engine_tasks import sample, version_of


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}")


def parameters(media_type: str, operator: str, **given_values: Any) -> dict[str, Any]:
    """All parameters of an operator."""
    return AUGMENTATIONS[media_type][operator].read({**given_values}, "recipe")


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Recipes.


def test_a_recipe_is_read_with_its_defaults() -> None:
    text = "seed: 7\ncopies: 2\nsteps: [flip, {rotate: {max_degrees: 30, probability: 0.5}}]"
    assert parse_augmentation(text, "image").to_json() == {
        "seed": 7,
        "copies": 2,
        "steps": [
            {"operator": "flip", "direction": "horizontal", "probability": 0.5},
            {"operator": "rotate", "max_degrees": 30.0, "probability": 0.5},
        ],
    }


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("web-en", "recipe", "a mapping with `steps`"),
        ("steps: []", "recipe.steps", "1 to 64"),
        ("steps: [flip]\nseed: -1", "recipe.seed", "whole number from 0"),
        ("steps: [flip]\nseed: 1.5", "recipe.seed", "whole number"),
        ("steps: [flip]\ncopies: 17", "recipe.copies", "from 1 to 16"),
        ("steps: [flip]\ncopies: true", "recipe.copies", "from 1 to 16"),
        ("steps: [flip]\nlanguage: en", "recipe.language", "is unknown"),
        ("steps: [misspell]", "recipe.steps[0]", "there is no operator 'misspell'; see DescribeAugmentation"),
        ("steps: [rotat]", "recipe.steps[0]", "is it rotate?"),
        ("steps: [{flip: {direction: left}}]", "recipe.steps[0].flip.direction", "horizontal, vertical"),
        ("steps: [{flip: {probability: 2}}]", "recipe.steps[0].flip.probability", "between 0 and 1"),
        ("steps: [{rotate: {max_degrees: null}}]", "recipe.steps[0].rotate.max_degrees", "is missing"),
        ("steps: &a [flip]\nseed: *a", "recipe", "aliases"),
    ],
)
def test_mistakes_are_named(text: str, field: str, says: str) -> None:
    with pytest.raises((DomainError, ArgosyError)) as caught:
        parse_augmentation(text, "image")
    assert (caught.value.reason, caught.value.metadata["field"]) == ("INVALID_FIELD", field)
    assert says in caught.value.message


def test_bounds_that_contradict_each_other_are_named() -> None:
    with pytest.raises(DomainError, match="max_snr"):
        read_augmentation({"steps": [{"noise": {"min_snr": 40}}]}, "audio")


def test_every_operator_has_an_implementation() -> None:
    assert tuple(AUGMENTATIONS["text"]) == TEXT_OPERATORS
    assert set(AUGMENTATIONS["image"]) == set(IMAGE_OPERATIONS)
    # Those of sounds and films: tests/integration/dataset/test_media.py.


# Text.

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on."


def changed(operator: str, text: str = TEXT, seed: int = 0, **given_values: Any) -> str:
    return augment_text(text, operator, parameters("text", operator, **given_values), random(seed))


def test_words_are_inserted_swapped_and_deleted() -> None:
    words = sorted(TEXT.split())
    inserted = changed("insert_words", share=0.2).split()
    assert len(inserted) == len(words) + 3
    assert set(inserted) == set(words)
    swapped = changed("swap_words", share=0.2)
    assert swapped != TEXT
    assert sorted(swapped.split()) == words
    deleted = changed("delete_words", share=0.2)
    assert len(deleted.split()) == len(words) - 3
    assert "  " not in deleted
    assert changed("delete_words", "one two", share=1.0) in ("one", "two", "one ", " two")


def test_letters_are_replaced_by_neighbours() -> None:
    typed = changed("misspell", "Banana ananas", share=1.0)
    pairs = [(was, now) for was, now in zip("Banana ananas", typed, strict=True) if was != now]
    assert len(pairs) == 2
    for was, now in pairs:
        assert now.lower() in {"a": "qwsz", "n": "bhjm", "b": "vghn", "s": "awedxz"}[was.lower()]
        assert was.isupper() == now.isupper()


def test_synonyms_are_of_their_group() -> None:
    groups = ["quick, fast, swift", "dog, hound", "狗，犬"]
    found = changed("synonyms", "Quick! The dog, a quick dog. 狗", groups=groups, share=1.0)
    assert found[:5] in ("Fast!", "Swift")
    assert found.endswith("hound. 犬")
    assert "dog" not in found
    assert changed("synonyms", "nothing here", groups=groups, share=1.0) == "nothing here"


@given(st.text(max_size=60), st.sampled_from(TEXT_OPERATORS), st.floats(0, 1), st.integers(0, 9))
@settings(max_examples=60)
def test_any_text_can_be_changed(text: str, operator: str, share: float, seed: int) -> None:
    extra = {"groups": ["a, b", "b"]} if operator == "synonyms" else {}
    found = changed(operator, text, seed, share=share, **extra)
    assert found == changed(operator, text, seed, share=share, **extra)
    assert not text.strip() or found.strip()


# Images: a red rectangle on grey tells where a box has gone.

BOX = (20.0, 12.0, 16.0, 10.0)


def scene() -> Image.Image:
    picture = Image.new("RGB", (64, 48), (90, 90, 90))
    picture.paste((200, 20, 20), (20, 12, 36, 22))
    return picture


def red_box(picture: Image.Image) -> tuple[float, ...]:
    values = np.asarray(picture.convert("RGB")).astype(int)
    rows, columns = np.nonzero(values[..., 0] - values[..., 1] > 80)
    left, top = columns.min(), rows.min()
    return left, top, columns.max() + 1 - left, rows.max() + 1 - top


@pytest.mark.parametrize(
    ("operator", "given_values"),
    [
        ("flip", {}),
        ("flip", {"direction": "vertical"}),
        ("scale", {"max_change": 0.5}),
        ("crop", {"min_share": 0.75}),
        ("rotate", {"max_degrees": 5}),
        ("rotate", {"max_degrees": 40}),
        ("noise", {}),
        ("blur", {"max_radius": 1}),
        ("brightness", {"max_change": 1}),
        ("contrast", {"max_change": 1}),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_boxes_go_where_the_image_goes(operator: str, given_values: dict[str, Any], seed: int) -> None:
    step = parameters("image", operator, **given_values)
    picture, (box,) = IMAGE_OPERATIONS[operator](scene(), [BOX], step, random(seed))
    seen = clipped(box, *picture.size)
    assert seen is not None
    assert np.allclose(seen, red_box(picture), atol=1.6), (seen, red_box(picture))
    assert picture.tobytes() != scene().tobytes()


def test_boxes_outside_are_gone_and_others_are_cut() -> None:
    assert clipped((-5, -5, 10, 10), 64, 48) == (0, 0, 5, 5)
    assert clipped((60, 40, 10, 10), 64, 48) == (60, 40, 4, 8)
    assert clipped((63.5, 0, 10, 10), 64, 48) is None
    assert clipped((70, 0, 10, 10), 64, 48) is None


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "YCbCr"])
@pytest.mark.parametrize("operator", IMAGE_OPERATIONS)
def test_every_kind_of_image_can_be_changed(operator: str, mode: str) -> None:
    picture, _ = IMAGE_OPERATIONS[operator](plain(scene().convert(mode)), [], parameters("image", operator), random())
    assert picture.mode in ("L", "RGB", "RGBA")


# The whole task.


def run(store: BlobStore, version: str, media_type: str, recipe: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = {"version": version, "grant": "", "media_type": media_type, "text_column": "text"}
    spec["recipe"] = read_augmentation(recipe, media_type).to_json()
    spec["media_grant"] = "" if media_type == "text" else "all"
    return augmenting.run(LocalContext(spec, blobs_write=store, blobs_read=store))


def test_originals_stay_beside_their_copies(store: BlobStore) -> None:
    version = version_of(store, [{"text": sample(number), "n": number, "source": "s"} for number in range(5)])
    before = opened(store, version).index
    result = run(store, version, "text", {"copies": 2, "steps": ["swap_words", "misspell"]})
    rows = rows_of(store, result)
    assert [row["n"] for row in rows] == [number for number in range(5) for _ in range(3)]
    assert [row["text"] for row in rows[::3]] == [sample(number) for number in range(5)]
    assert [row.get("augmented_from") for row in rows[:4]] == [None, before.id_of(0), before.id_of(0), None]
    assert rows[1]["text"] != rows[2]["text"]
    after = opened(store, result["manifest_digest"]).index
    assert after.sources == ["s"]
    assert after.position[:4].tolist() == [0, 0, 0, 1]
    # The originals are referenced, not stored again.
    assert result["new_byte_count"] == after.byte_count - before.byte_count
    report = result["report"]
    assert (report["rows_in"], report["rows_out"], report["changed"]) == (5, 15, {"swap_words": 10, "misspell": 10})
    assert report["rules"][0]["changed_examples"][0]["row_id"] == before.id_of(0)


def test_a_copy_depends_on_nothing_around_it(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": sample(number)} for number in range(30)]
    recipe: dict[str, Any] = {"seed": 3, "copies": 2, "steps": ["delete_words", "misspell", "delete_words"]}
    whole = run(store, version_of(store, rows), "text", recipe)
    monkeypatch.setitem(augmenting._SHARD_ROWS, "text", 7)
    assert run(store, version_of(store, rows), "text", recipe)["content_digest"] == whole["content_digest"]
    one = rows_of(store, run(store, version_of(store, rows[11:12]), "text", recipe))
    assert one == rows_of(store, whole)[33:36]
    other = run(store, version_of(store, rows), "text", {**recipe, "seed": 4})
    assert other["content_digest"] != whole["content_digest"]
    # Another operator behind changes nothing of what those before do, and the two of one name differ.
    seeds = [augmenting.step_seed(3, "a", name, 1) for name in ("noise#1", "noise#2", "blur#1")]
    assert len({*seeds, augmenting.step_seed(3, "a", "noise#1", 2), augmenting.step_seed(3, "b", "noise#1", 1)}) == 5
