"""MLflow's own store in its own environment: reads commands as JSON lines, answers with seconds.

    python metrics_peer.py postgresql+psycopg2://...

`log` writes points with `SqlAlchemyStore.log_batch`, a thousand a call, which is what its server takes; `curve` reads
one metric; `runs` makes runs; `search` gives a page of them, filtered and sorted by a metric.
"""

import json
import sys
import tempfile
import time

from mlflow.entities import Metric, ViewType
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

BATCH = 1000


def main() -> None:
    store = SqlAlchemyStore(sys.argv[1], tempfile.mkdtemp(prefix="argosy-bench-"))
    experiment = store.create_experiment("bench")

    def new_run() -> str:
        return store.create_run(experiment, "bench", 0, [], "run").info.run_id

    def log(keys: int, steps: int) -> float:
        run = new_run()
        points = [
            Metric(f"phase.m{key}", 1 / (step + 1) + key, 1_790_000_000_000 + step, step)
            for key in range(keys)
            for step in range(steps)
        ]
        start = time.perf_counter()
        for first in range(0, len(points), BATCH):
            store.log_batch(run, metrics=points[first : first + BATCH], params=[], tags=[])
        return time.perf_counter() - start

    def curve(steps: int) -> float:
        run = new_run()
        points = [Metric("sft.loss", 1 / (step + 1), 1_790_000_000_000 + step, step) for step in range(steps)]
        for first in range(0, steps, BATCH):
            store.log_batch(run, metrics=points[first : first + BATCH], params=[], tags=[])
        start = time.perf_counter()
        assert len(store.get_metric_history(run, "sft.loss")) == steps
        return time.perf_counter() - start

    def runs(count: int) -> float:
        start = time.perf_counter()
        for number in range(count):
            store.log_batch(new_run(), metrics=[Metric("loss", number % 997 / 997, 0, 0)], params=[], tags=[])
        return time.perf_counter() - start

    def search() -> float:
        start = time.perf_counter()
        store.search_runs([experiment], "metrics.loss < 0.5", ViewType.ACTIVE_ONLY, 50, ["metrics.loss ASC"])
        return time.perf_counter() - start

    operations = {"log": log, "curve": curve, "runs": runs, "search": search}
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(operations[request.pop("op")](**request)), flush=True)


if __name__ == "__main__":
    main()
