"""The network that reads a line: convolutions, a recurrent layer in both directions, a character or blank a place."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

# Pixels along the line of one place. The second pooling leaves the width as it is: CTC wants more places than there are
# characters.
STRIDE = 2
# Number of the blank of CTC.
BLANK = 0


class Network(nn.Module):
    """CRNN (Shi et al., 2015), small.

    Args:
        characters: how many there are, without the blank.
        height: of a line in pixels.
        channels: of the widest convolution, and states of a direction of the recurrent layer.
    """

    def __init__(self, characters: int, height: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.fine = _stage(1, half, (3, 3), (1, 1))
        self.coarse = _stage(half, channels, (3, 3), (1, 1))
        self.column = _stage(channels, channels, (height // 4, 3), (0, 1))
        self.along = nn.LSTM(channels, channels, batch_first=True, bidirectional=True)
        self.characters = nn.Linear(2 * channels, characters + 1)

    def forward(self, lines: Tensor, places: Tensor) -> Tensor:
        """Log-probabilities of the blank and of the characters, float[n, longest, 1 + characters].

        Args:
            lines: ink of 0 to 1, float[n, height, width]; 0 behind the end of a line.
            places: of each line, int64[n] on the CPU: its width over `STRIDE`.
        """
        fine = nn.functional.max_pool2d(self.fine(lines[:, None]), 2)
        # What stands behind the end of a line must not depend on the longer lines beside it.
        inside = torch.arange(fine.shape[3]) < places[:, None]
        inside = inside[:, None, None].to(fine.device)
        coarse = nn.functional.max_pool2d(self.coarse(fine * inside), (2, 1))
        columns = self.column(coarse * inside)[:, :, 0].transpose(1, 2)
        packed = pack_padded_sequence(columns, places, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.along(packed)[0], batch_first=True)
        return self.characters(states).log_softmax(-1)


def best_path(choices: list[int]) -> list[int]:
    """Characters of the most likely path: repetitions are one, blanks are nothing (Graves et al., 2006, section 3.2).

    Args:
        choices: the most likely character or blank of each place.
    """
    return [choice for before, choice in zip([BLANK, *choices], choices, strict=False) if choice not in (before, BLANK)]


def places_needed(text: str) -> int:
    """Places that CTC needs for a text: one a character, and a blank between equal neighbours."""
    return len(text) + sum(one == other for one, other in itertools.pairwise(text))


def _stage(inputs: int, outputs: int, kernel: tuple[int, int], padding: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )
