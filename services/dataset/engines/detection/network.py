"""The network of the built-in detector: where there is an object, its box, and a feature to compare with words.

Every cell of a grid says three things, as CenterNet does (Zhou et al. 2019, "Objects as Points"): how much it is the
middle of an object of whatever kind, how far the sides of the box are from it, and one feature vector. A colour word
and a shape word are a vector each; the cosine between a word and the feature says how well it fits, among the words of
its kind. Colour and shape are scored apart, so a pair of words needs never to have been seen together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.dataset.engines.detection.scenes import COLOUR_NAMES, SHAPE_NAMES

# Pixels of a cell's side.
STRIDE = 4
# Sides of images must be multiples of it.
MULTIPLE = 8
_FEATURES = 32
_WIDTH = 48
# Cosines go from -1 to 1, too narrow for a softmax to become sure of anything; CLIP learns this factor likewise.
_SHARPNESS = 10.0
# A cell is the middle of an object in about one of a hundred cases: the start that focal losses need.
_PRIOR_LOGIT = -4.6


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Network(nn.Module):
    """About 120,000 parameters.

    `forward` takes images (n, 3, height, width) of 0 to 1 and gives, for grids of a quarter of the sides:
    centre logits (n, rows, columns); distances of left, top, right, bottom from the cell's middle in cells
    (n, rows, columns, 4); logits of colour words and of shape words (n, rows, columns, words), each by itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.PixelUnshuffle(2), _layer(12, 24, 2), _layer(24, _FEATURES))
        self.down = _layer(_FEATURES, _WIDTH, 2)
        self.wide = nn.ModuleList(_layer(_WIDTH, _WIDTH) for _ in range(4))
        self.up = nn.Conv2d(_WIDTH, _FEATURES, 1)
        self.join = _layer(_FEATURES, _FEATURES)
        self.centre = nn.Conv2d(_FEATURES, 1, 1)
        self.sides = nn.Conv2d(_FEATURES, 4, 1)
        self.feature = nn.Conv2d(_FEATURES, _FEATURES, 1)
        self.colour_words = nn.Embedding(len(COLOUR_NAMES), _FEATURES)
        self.shape_words = nn.Embedding(len(SHAPE_NAMES), _FEATURES)
        self.sharpness = nn.Parameter(torch.tensor(_SHARPNESS))
        nn.init.constant_(self.centre.bias, _PRIOR_LOGIT)  # pyrefly: ignore[bad-argument-type]
        # Exponentials of 1.2 are three cells, half of a usual object.
        nn.init.constant_(self.sides.bias, 1.2)  # pyrefly: ignore[bad-argument-type]
        # Convolutions on a CPU take a third less time when the channels of a pixel lie together, as images have them.
        self.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        fine = self.fine(images - 0.5)
        coarse = self.down(fine)
        for layer in self.wide:
            coarse = coarse + layer(coarse)
        joined = self.join(fine + functional.interpolate(self.up(coarse), scale_factor=2.0))
        feature = functional.normalize(self.feature(joined).permute(0, 2, 3, 1), dim=-1)
        sides = self.sides(joined).permute(0, 2, 3, 1).clamp(max=5).exp()
        return (
            self.centre(joined)[:, 0],
            sides,
            self._fit(feature, self.colour_words),
            self._fit(feature, self.shape_words),
        )

    def _fit(self, feature: Tensor, words: nn.Embedding) -> Tensor:
        return self.sharpness * feature @ functional.normalize(words.weight, dim=-1).T


def corners(sides: Tensor) -> Tensor:
    """Boxes in pixels, (n, rows, columns, 4) left, top, right, bottom, from the distances that the network gives."""
    _, rows, columns, _ = sides.shape
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    signs = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    return STRIDE * (torch.stack([x, y, x, y], dim=-1) + signs * sides)
