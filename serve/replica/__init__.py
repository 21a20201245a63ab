"""The processes that hold models, and the way of a request through one of them.

- `replica`: the Ray Serve deployment; loads the models of one process and connects them to the gateways.
- `request_bounds`: limits on the size of a request, checked before any part of it is parsed.
- `vllm_engine`: a model in vLLM behind vLLM's own OpenAI serving classes. `async_llm` is vLLM's engine with a count of
  the tokens of each request, and `engine_stats` keeps the engine's state for the metrics.
- `weight_swap`: loads another version of the weights while it serves, apart from requests.
- `lora`: an adapter in the engine of another model, and `adapter_versions`: those that the run keeps.
- `reward_scorer`: a reward model behind `/v1/score`.
- `autoscaling`: how many replicas Ray Serve keeps, and how they are.
"""
