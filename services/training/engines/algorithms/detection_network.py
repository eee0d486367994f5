"""The network of the detector, what it should say, and its loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

# Pixels of a cell's side: two convolutions with stride 2.
STRIDE = 4
# Tian et al., 2019 (FCOS), section 3 of the version with centre sampling: cells this near to the middle of a box, in
# cells, learn it.
_RADIUS = 1.5
# Lin et al., 2017 (focal loss), section 4.1: the score that every cell begins with, gamma and alpha.
_PRIOR, _GAMMA, _ALPHA = 0.01, 2.0, 0.25
# No side of a box is further from its cell than e to this many cells.
_MOST = 5.0


class _Block(nn.Module):
    """A convolution beside the identity; a dilation of d sees d cells further."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, cells: Tensor) -> Tensor:
        return cells + functional.relu(self.norm(self.convolution(cells)))


class Network(nn.Module):
    """A one-stage detector without anchors on one grid, as FCOS (Tian et al., 2019).

    Args:
        classes: how many.
        channels: of a cell.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels // 2, 3, 2, 1, bias=False),
            nn.BatchNorm2d(channels // 2),
            nn.ReLU(),
            nn.Conv2d(channels // 2, channels, 3, 2, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(*(_Block(channels, dilation) for dilation in (1, 2, 4, 1)))
        self.scores = nn.Conv2d(channels, classes, 1)
        self.sides = nn.Conv2d(channels, 4, 1)
        nn.init.constant_(self.scores.bias, -math.log((1 - _PRIOR) / _PRIOR))  # pyrefly: ignore[bad-argument-type]
        # A side begins e cells away, which is half of a usual object.
        nn.init.constant_(self.sides.bias, 1.0)  # pyrefly: ignore[bad-argument-type]

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What each cell says.

        Args:
            pixels: uint8[n, side, side, 3].

        Returns:
            Logits of the classes, float[n, cells, classes], and distances in pixels from the middle of the cell to the
            left, top, right and bottom of the box, float[n, cells, 4].
        """
        cells = self.blocks(self.stem(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1))
        scores = self.scores(cells).flatten(2).transpose(1, 2)
        sides = self.sides(cells).flatten(2).transpose(1, 2)
        return scores, STRIDE * sides.clamp(max=_MOST).exp()


def middles(side: int) -> Tensor:
    """Middles of the cells of a picture of `side` pixels, float[cells, 2], x and y in pixels."""
    along = (torch.arange(-(-side // STRIDE)) + 0.5) * STRIDE
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2)


def targets(corners: Tensor, labels: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """What the cells of one picture should say.

    A cell learns a box that it is in and near whose middle it is; of several the smallest (FCOS, section 3.1).

    Args:
        corners: left, top, right, bottom in pixels, float[boxes, 4].
        labels: numbers of the classes, int64[boxes].

    Returns:
        Class of each cell, int64[cells], -1 for none; distances to the sides of its box, float[cells, 4].
    """
    places = middles(side)
    if not len(corners):
        return torch.full((len(places),), -1), torch.ones(len(places), 4)
    sides = torch.cat([places[:, None] - corners[None, :, :2], corners[None, :, 2:] - places[:, None]], dim=2)
    centre = (corners[:, :2] + corners[:, 2:]) / 2
    near = (places[:, None] - centre[None]).abs().amax(2) <= _RADIUS * STRIDE
    area = (corners[:, 2:] - corners[:, :2]).prod(1).expand(len(places), -1)
    area = area.masked_fill(~(near & (sides.amin(2) > 0)), math.inf)
    smallest, box = area.min(1)
    return labels[box].masked_fill(smallest.isinf(), -1), sides[torch.arange(len(places)), box]


def loss(scores: Tensor, sides: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss of the classes (Lin et al., 2017) and IoU loss of the boxes (Yu et al., 2016), a positive cell.

    Args:
        scores, sides: of `Network`.
        labels, wanted: of `targets`, int64[n, cells] and float[n, cells, 4].
    """
    positive = labels >= 0
    count = positive.sum().clamp(min=1)
    right = functional.one_hot(labels.clamp(min=0), scores.shape[2]).float() * positive[..., None]
    cross = functional.binary_cross_entropy_with_logits(scores, right, reduction="none")
    chance = scores.sigmoid()
    missed = torch.where(right > 0, 1 - chance, chance)
    weight = torch.where(right > 0, _ALPHA, 1 - _ALPHA)
    focal = (weight * missed**_GAMMA * cross).sum() / count
    return focal + iou_loss(sides[positive], wanted[positive]).sum() / count


def iou_loss(sides: Tensor, wanted: Tensor) -> Tensor:
    """-ln of the intersection over union of two boxes around the same place, float[n] (Yu et al., 2016, UnitBox).

    Args:
        sides, wanted: distances to left, top, right, bottom, float[n, 4].
    """
    least = torch.minimum(sides, wanted)
    shared = (least[:, 0] + least[:, 2]) * (least[:, 1] + least[:, 3])
    areas = [(box[:, 0] + box[:, 2]) * (box[:, 1] + box[:, 3]) for box in (sides, wanted)]
    return (areas[0] + areas[1] - shared).log() - shared.log()
