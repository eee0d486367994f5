"""Writes checkpoints beside the steps: the steps wait while the state is copied to host memory, and for no disk."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from libs.common.blobs import BlobStore
from services.training.engines.checkpoints import Json, Progress, Snapshot, write_snapshot
from services.training.engines.group import Group
from services.training.engines.model import trained_weights
from services.training.engines.sharding import whole


class CheckpointWriter:
    """One checkpoint at a time: the next one waits until the one before is complete and reported.

    The host memory is taken once and used for every checkpoint; beside a GPU it is pinned.

    Args:
        group: all its workers must call `write`, as a divided state is put together by all; the leading one writes.
        report: takes a complete checkpoint, see `write_snapshot`.
    """

    def __init__(self, store: BlobStore, group: Group, report: Callable[[Json], None]) -> None:
        self._store = store
        self._group = group
        self._report = report
        self._host: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def write(self, model: nn.Module, optimiser: Optimizer | None, progress: Progress, phase: str, kept: str) -> None:
        """Copies the state and goes on; see `Snapshot` for the arguments.

        Raises:
            Exception: The checkpoint before could not be written, or reported.
        """
        self.wait()
        weights = {
            name: self._copied(f"weights/{name}", tensor) for name, tensor in sorted(trained_weights(model).items())
        }
        state = self._optimiser_state(optimiser) if optimiser is not None else None
        if not self._group.leads:
            return
        if self._group.device.type == "cuda":
            torch.cuda.synchronize(self._group.device)
        snapshot = Snapshot(weights, state, torch.get_rng_state(), copy.deepcopy(progress), phase, kept)
        self._thread = threading.Thread(target=self._work, args=(snapshot,), name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what went wrong with the last checkpoint, if it has."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Returns when the last checkpoint is complete and reported; raises what went wrong with it."""
        self.settle()
        self.check()

    def settle(self) -> None:
        """Returns when nothing is being written any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self, snapshot: Snapshot) -> None:
        try:
            self._report(write_snapshot(self._store, snapshot))
        except BaseException as error:  # it belongs to the thread that takes the steps
            self._error = error

    def _optimiser_state(self, optimiser: Optimizer) -> dict[int, Json]:
        """The moments by number of the parameter, as `Optimizer.state_dict` numbers them."""
        found: dict[int, Json] = {}
        for number, values in optimiser.state_dict()["state"].items():
            found[number] = {
                name: self._copied(f"optimiser/{number}/{name}", value) if isinstance(value, Tensor) else value
                for name, value in sorted(values.items())
            }
        return found

    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        """The whole tensor in host memory of the leading worker."""
        full = whole(tensor, self._group)
        if not self._group.leads:
            return full
        if name not in self._host or self._host[name].shape != full.shape:
            pinned = self._group.device.type == "cuda"
            self._host[name] = torch.empty(full.shape, dtype=full.dtype, pin_memory=pinned)
        return self._host[name].copy_(full, non_blocking=True)
