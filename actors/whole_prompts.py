"""How vLLM shares its steps among prompts on CPUs."""

from typing import Any


def whole_prompts(context: int, tokens: int) -> dict[str, Any]:
    """Arguments of an engine on CPUs by which no step reads a part of a prompt.

    After such a part, vLLM 0.32 winds back the random numbers of a request that has a seed, which PyTorch's generators
    on CPUs cannot do ("CPU Generator does not use offset"): the engine would die with all its requests.

    Args:
        context: the most tokens of a prompt with its completion.
        tokens: that a step reads at most, if no prompt is longer.
    """
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(context, tokens)}
