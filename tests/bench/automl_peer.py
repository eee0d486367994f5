"""FLAML on one table, in an environment of its own; started by `tests.bench.automl`.

python automl_peer.py table.npz seconds seed       # writes what it found as JSON to stdout
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import flaml
import numpy as np


def main() -> None:
    """Fits and asks."""
    table: Any = np.load(sys.argv[1])
    classes = table["answers"].dtype.kind == "i"
    model: Any = flaml.AutoML()
    began = time.perf_counter()
    model.fit(
        table["rows"],
        table["answers"],
        task="classification" if classes else "regression",
        metric="log_loss" if classes else "rmse",
        time_budget=float(sys.argv[2]),
        seed=int(sys.argv[3]),
        n_jobs=1,
        verbose=0,
    )
    seconds = time.perf_counter() - began
    told = model.predict_proba(table["held_rows"]) if classes else model.predict(table["held_rows"])
    found = {
        "told": np.asarray(told, np.float64).tolist(),
        "seconds": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "found": str(model.best_estimator),
        "version": flaml.__version__,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
