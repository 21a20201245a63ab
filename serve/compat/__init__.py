"""The uses of vLLM (`vllm_engine`, `vllm_openai`) and Ray Serve (`ray_serve`) in this layer that are private, or that
change between versions of the two.

Written for vLLM 0.32 and Ray 2.60. After an upgrade, check these files from top to bottom: each function says what to
look at. Classes that derive from vLLM's, or are called by it, have files of their own in `serve.replica`, and say the
same: `ThreadedCore`, `MeteredLLM`, `EngineStats` and `WeightReloadExtension`.

None of them imports vLLM, which costs 15 s of CPU time, before a function is called: the gateway needs `ray_serve`
alone.
"""
