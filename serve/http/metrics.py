"""Prometheus metrics of the gateway: requests, tokens and times, by key, model and version of the weights."""

import time
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.http.request_context import RequestContext
from serve.transport.messages import EngineState

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


# The descriptions of the engines' metrics, by the fields of `EngineState`. Counts begin again when a replica restarts.
ENGINE = {
    "running": "Requests whose tokens are computed, all replicas together.",
    "waiting": "Requests in the engines' queues.",
    "kv_cache_usage": "Share of the KV cache in use, of the fullest replica.",
    "preemptions": "Requests whose cache was given up for others, since the replicas started.",
    "prefix_tokens": "Tokens of prompts that were looked up in the prefix cache, since the replicas started.",
    "prefix_hits": "Tokens of prompts that were found there, since the replicas started.",
}


def label_values(context: RequestContext) -> tuple[str, str, str]:
    """Returns the values of the labels `key`, `model` and `weights`. Of several versions the newest counts."""
    return context.caller.name, context.model, context.weights.rpartition(", ")[2]


class GatewayMetrics:
    """The metrics of one gateway.

    The label `model` is a served name or empty, and `route` a pattern of `serve.http.auth`: clients cannot create new
    time series.

    Args:
        weights: the version of every model's weights.
    """

    def __init__(self, weights: Mapping[str, str | None]) -> None:
        self._registry = CollectorRegistry()
        by = ("key", "model", "weights")
        self.requests = Counter(
            "triptych_requests", "Requests answered.", (*by, "route", "status"), registry=self._registry
        )
        self.tokens = Counter(
            "triptych_tokens", "Tokens of prompts and of answers.", (*by, "kind"), registry=self._registry
        )
        self.first_token = Histogram(
            "triptych_time_to_first_token_seconds",
            "From a request for a stream to the first event of its answer.",
            by,
            buckets=SECONDS,
            registry=self._registry,
        )
        self.next_token = Histogram(
            "triptych_inter_token_seconds",
            "Between two events of a stream.",
            by,
            buckets=SECONDS,
            registry=self._registry,
        )
        self.duration = Histogram(
            "triptych_request_seconds",
            "From a request to the end of its answer.",
            (*by, "route"),
            buckets=SECONDS,
            registry=self._registry,
        )
        self.running = Gauge("triptych_requests_running", "Requests in progress.", ("model",), registry=self._registry)
        self.recorded = Counter(
            "triptych_recorded_prompts", "Prompts to be stored.", ("outcome",), registry=self._registry
        )
        self._served = Gauge(
            "triptych_model_info", "The weights served.", ("model", "weights"), registry=self._registry
        )
        self._engines = {
            name: Gauge(f"triptych_engine_{name}", text, ("model",), registry=self._registry)
            for name, text in ENGINE.items()
        }
        # Reward models and adapters have no engine of their own, and no series.
        self._with_engines: set[str] = set()
        for model, version in weights.items():
            self._served.labels(model, version or "").set(1)

    def count(self, context: RequestContext, route: str) -> None:
        """Counts a request that has ended."""
        labels = label_values(context)
        self.requests.labels(*labels, route, context.status).inc()
        self.duration.labels(*labels, route).observe(time.monotonic() - context.start)
        for kind, count in (("prompt", context.prompt_tokens), ("completion", context.completion_tokens)):
            if count:
                self.tokens.labels(*labels, kind).inc(count)

    def show_weights(self, model: str, weights: str) -> None:
        """Records that another version of a model's weights is served from now on."""
        self._served.remove_by_labels({"model": model})
        self._served.labels(model, weights).set(1)

    def show_engines(self, model: str, states: Sequence[EngineState]) -> None:
        """Records the states of the engines of a model's replicas: sums, and of shares the largest."""
        if not states and model not in self._with_engines:
            return
        self._with_engines.add(model)
        for name, gauge in self._engines.items():
            values = [getattr(state, name) for state in states]
            gauge.labels(model).set(max(values, default=0.0) if name == "kv_cache_usage" else sum(values))

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
