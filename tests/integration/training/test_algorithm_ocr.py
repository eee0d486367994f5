"""OCR on lines that are rendered with the font that comes with Pillow."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from services.training.engines.algorithms.interface import Table, Trained
from services.training.engines.algorithms.ocr import ALGORITHM
from services.training.engines.algorithms.ocr_network import Network, best_path, places_needed
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

_QUICK = parameters(ALGORITHM, height=16, channels=8, epochs=1, batch_size=8)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads may differ in their last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def line(text: str, random: np.random.Generator) -> bytes:
    """A text in some size and place, dark on light or light on dark, with noise."""
    font = ImageFont.load_default(int(random.integers(16, 22)))
    left, top, right, bottom = font.getbbox(text)
    size = (int(right - left) + 6, int(bottom - top) + 6)
    image = Image.new("L", size, 0)
    place = (3 - left + int(random.integers(-1, 2)), 3 - top + int(random.integers(-1, 2)))
    ImageDraw.Draw(image).text(place, text, fill=255, font=font)
    ink = np.asarray(image) / 255 * random.uniform(0.5, 1) + random.normal(0, 0.04, size[::-1])
    pixels = np.clip(ink if random.random() < 0.3 else 1 - ink, 0, 1)
    out = io.BytesIO()
    Image.fromarray((255 * pixels).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def lines(count: int, seed: int, characters: str = "0123456789") -> Table:
    """Numbers of two to five digits."""
    random = np.random.default_rng(seed)
    texts = ["".join(random.choice(list(characters), random.integers(2, 6))) for _ in range(count)]
    media = {f"{number}.png": line(text, random) for number, text in enumerate(texts)}
    return table([{"file_name": f"{number}.png", "text": text} for number, text in enumerate(texts)], media)


@pytest.fixture(scope="module")
def trained() -> tuple[Trained, Recorder]:
    watch = Recorder()
    given = parameters(ALGORITHM, height=16, channels=24, epochs=9, batch_size=8, learning_rate=0.005)
    return ALGORITHM.train(lines(300, 1), lines(60, 2), given, 5, watch), watch


def test_it_reads(trained: tuple[Trained, Recorder]) -> None:
    results = trained[0].results
    # 0.005 with two seeds, and 0.9 of the most common text.
    assert results["cer"] < results["baseline.cer"] - 0.5
    assert results["baseline.cer"] > 0.7
    require_reports(trained[1])


def test_files_give_the_reader_back(trained: tuple[Trained, Recorder]) -> None:
    reader = ALGORITHM.load(trained[0].files)
    random = np.random.default_rng(9)
    texts = ["407", "2319", "85", "66", "10293"]
    pictures = [line(text, random) for text in texts]
    read = reader.predict(pictures)
    assert sum(one == other for one, other in zip(read, texts, strict=True)) >= 3
    assert reader.predict([]) == []
    # What stands beside a line in its batch changes nothing.
    assert [reader.predict([one])[0] for one in pictures] == read
    require_damage_is_seen(ALGORITHM, trained[0].files)


def test_longer_lines_beside_a_line_change_nothing() -> None:
    torch.manual_seed(1)
    model = Network(5, 16, 8).eval()
    one, other = torch.rand(1, 16, 20), torch.rand(1, 16, 40)
    both = torch.cat([torch.nn.functional.pad(one, (0, 20)), other])
    with torch.no_grad():
        alone = model(one, torch.tensor([10]))
        beside = model(both, torch.tensor([10, 20]))
    torch.testing.assert_close(beside[:1, :10], alone)


def test_one_seed_one_model() -> None:
    require_reproducible(ALGORITHM, lines(20, 4), _QUICK)


def test_it_can_be_cancelled() -> None:
    require_cancel(ALGORITHM, lines(30, 4), _QUICK)


def test_bad_rows_are_named() -> None:
    good = line("12", np.random.default_rng(1))
    media = {"a.png": good, "bad.png": b"GIF89a", "narrow.png": line("1", np.random.default_rng(1))}
    rows = [{"file_name": "a.png", "text": "12"}] * 10

    def said(row: dict[str, str]) -> str:
        return refusal(ALGORITHM, table([*rows, row], media), _QUICK)

    assert "Row 11, column 'text': empty" in said({"file_name": "a.png", "text": " "})
    assert "Row 11, column 'file_name': empty" in said({"file_name": "", "text": "12"})
    assert "Row 11, column 'file_name': not a picture" in said({"file_name": "bad.png", "text": "12"})
    assert "Row 11, column 'text': the text needs 40 places" in said({"file_name": "narrow.png", "text": "12" * 20})
    assert "no column 'text'; they have file_name" in refusal(ALGORITHM, table([{"file_name": "a.png"}], media), _QUICK)
    assert "3 rows are too few" in refusal(ALGORITHM, table(rows[:3], media), _QUICK)
    assert refusal(ALGORITHM, table(rows, media), _QUICK, table([], columns=("file_name", "text"))) == (
        "The held-out data have no rows."
    )


def test_paths_and_places_of_ctc() -> None:
    assert best_path([0, 1, 1, 0, 1, 2, 2, 0]) == [1, 1, 2]
    assert best_path([]) == []
    assert places_needed("aab") == 4
