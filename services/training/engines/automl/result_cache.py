"""What was computed and may be asked for again, within bounds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

Array = np.ndarray

# Of a text beside its characters, and of its place in an array.
_TEXT_BYTES = 64


class ResultCache:
    """Results by key, those that were asked for longest ago given up first.

    Args:
        most_bytes: of all together; the newest is kept whatever it takes.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._results: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result, made where it is not kept."""
        if key not in self._results:
            self._results[key] = make()
        self._results.move_to_end(key)
        while len(self._results) > 1 and self.size > self._most_bytes:
            self._results.popitem(last=False)
        return self._results[key]

    @property
    def size(self) -> int:
        """Bytes of all that is kept."""
        return sum(map(_bytes, self._results.values()))


def _bytes(result: Any) -> int:
    if isinstance(result, tuple):
        return sum(map(_bytes, result))
    if isinstance(result, csr_matrix):
        return result.data.nbytes + result.indices.nbytes + result.indptr.nbytes
    return result.nbytes + (_TEXT_BYTES * result.size if result.dtype == object else 0)
