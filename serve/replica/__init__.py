"""The processes that hold models: what happens to a request once the gateway has sent it to a replica.

- `replica`: the Ray Serve deployment; loads the models of one process and passes requests to them.
- `vllm_engine`: a model in vLLM behind vLLM's own OpenAI serving classes; `vllm_in_process` runs its engine core in a
  thread where there is no GPU, and `weight_swap` loads another version of the weights while it serves.
- `lora`: an adapter in the engine of another model.
- `reward_scorer`: a reward model behind `/v1/score`.
- `autoscaling`: how many replicas Ray Serve keeps, and how they are.
"""
