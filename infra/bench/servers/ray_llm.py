"""The server that comes with Ray, `ray.serve.llm`, for one model and until SIGTERM. `start.py` runs it as a process."""

import argparse
import signal
import sys
import threading

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.llm import LLMConfig, build_openai_app

# CPUs by Ray's count, not cores: enough for the replicas of a router and an engine on any machine.
LOGICAL_CPUS = 8


def main() -> None:
    """Serves the model on the loopback."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("model", help="a Hugging Face directory")
    words.add_argument("--name", required=True)
    words.add_argument("--port", type=int, required=True)
    words.add_argument("--context", type=int, required=True)
    words.add_argument("--cache-bytes", type=int, required=True)
    given = words.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ray.init(num_cpus=LOGICAL_CPUS, include_dashboard=False, log_to_driver=True)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=given.port))
    config = LLMConfig(
        model_loading_config={"model_id": given.name, "model_source": given.model},
        deployment_config={"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
        placement_group_config={"bundles": [{"CPU": 1}]},
        engine_kwargs={
            "max_model_len": given.context,
            "dtype": "float32",
            "enforce_eager": True,
            "kv_cache_memory_bytes": given.cache_bytes,
        },
    )
    serve.run(build_openai_app({"llm_configs": [config]}))
    threading.Event().wait()


if __name__ == "__main__":
    main()
