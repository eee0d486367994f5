"""Receives vLLM's statistics of each step. Imported only where vLLM is running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.loggers import PrometheusStatLogger

if TYPE_CHECKING:
    from services.deploy.engines.text_engine import EngineLoad


class _LoadLogger(PrometheusStatLogger):
    """Copies three numbers a step. vLLM adds its own Prometheus logger, about a hundred series that nobody would read
    here, unless a subclass of it is given; so this is one, without calling what it inherits."""

    def __init__(self, load: EngineLoad) -> None:
        self._load = load

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Called by the engine's output loop."""
        if scheduler_stats is not None:
            self._load.running = scheduler_stats.num_running_reqs
            self._load.waiting = scheduler_stats.num_waiting_reqs
            self._load.kv_cache_usage = scheduler_stats.kv_cache_usage

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

    def log(self) -> None:
        """Nothing to print."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """The engine is never put to sleep."""


def stats_factory(load: EngineLoad) -> type[PrometheusStatLogger]:
    """A class that vLLM instantiates itself and that writes to `load`."""

    class Logger(_LoadLogger):
        def __init__(self, vllm_config: Any, engine_indexes: Any = None) -> None:
            del vllm_config, engine_indexes
            super().__init__(load)

    return Logger
