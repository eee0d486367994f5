"""Grounding DINO through transformers, with a tiny model of random weights: the way of the data, not what it finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from libs.common.domain import DomainError
from services.dataset.domain.detectors import DetectorKind
from services.dataset.engines.detection.adapters import open_detector

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "red", "star", "blue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grounding-dino")
    torch.manual_seed(1)
    backbone = transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1],
        num_heads=[1, 1, 1],
        window_size=4,
        out_indices=[2, 3],  # pyrefly: ignore[unexpected-keyword]
        image_size=64,
    )
    text = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        num_queries=20,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_feature_levels=3,
    )
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(path)
    vocabulary = path / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizer(str(vocabulary))
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(path)
    return path


def test_boxes_are_of_each_image_and_prompt(folder: Path) -> None:
    images = [np.full((50, 80, 3), 120, np.uint8), np.full((64, 40, 3), 30, np.uint8)]
    found = open_detector(DetectorKind.GROUNDING_DINO, folder).detect(images, ["red star", "blue"])
    assert [len(answers) for answers in found] == [2, 2]
    for image, answers in zip(images, found, strict=True):
        for answer in answers:
            assert 0 < len(answer.boxes) <= 20
            assert (np.diff(answer.scores) <= 0).all()
            assert (answer.boxes[:, 2:] >= answer.boxes[:, :2]).all()
            assert np.abs(answer.boxes).max() <= 2 * max(image.shape)


def test_weights_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DomainError, match="not of a Grounding DINO") as refused:
        open_detector(DetectorKind.GROUNDING_DINO, tmp_path)
    assert refused.value.reason == "PREFLIGHT_FAILED"
