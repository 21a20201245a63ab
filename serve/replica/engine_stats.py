"""The queue, the KV cache and the preemptions of a vLLM engine, for the gateway's metrics."""

from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from serve.compat.vllm_engine import unfinished_requests
from serve.transport.messages import EngineState


class EngineStats(PrometheusStatLogger):
    """Keeps the state of an engine after its last step.

    It takes the place of vLLM's own logger, which registers metrics for the whole process: several engines share a
    process here, and would replace each other's metrics. After an upgrade of vLLM, look at `StatLoggerManager`, which
    adds that logger unless it is given one derived from it, and at `SchedulerStats`.
    """

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state = EngineState()

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        *_: Any,
        **__: Any,
    ) -> None:
        """Updates the state. Called by vLLM after every step."""
        state = self.state
        if scheduler_stats:
            state.running = scheduler_stats.num_running_reqs
            state.waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            state.kv_cache_usage = scheduler_stats.kv_cache_usage
            state.prefix_tokens += scheduler_stats.prefix_cache_stats.queries
            state.prefix_hits += scheduler_stats.prefix_cache_stats.hits
        if iteration_stats:
            state.preemptions += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None:
        """Does nothing."""

    def record_sleep_state(self, *_: Any, **__: Any) -> None:
        """Does nothing: engines do not sleep here."""


def state_of(engine: AsyncLLM) -> EngineState:
    """Returns the state of an engine that was started with `EngineStats`."""
    manager = engine.logger_manager
    (found,) = (one for one in (manager.stat_loggers if manager else []) if isinstance(one, EngineStats))
    if not unfinished_requests(engine):
        # vLLM reports a step when it gives tokens, and none after the last request was aborted.
        found.state.running, found.state.waiting, found.state.kv_cache_usage = 0, 0, 0.0
    return found.state
