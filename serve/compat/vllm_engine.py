"""The uses of vLLM's engine and settings that are private, or that change between its versions."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast, get_args

from cluster.errors import UserError
from cluster.runtime.plan import Allocation

if TYPE_CHECKING:
    from vllm.config.lora import MaxLoRARanks
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM


def engine_environment(share: Allocation) -> dict[str, str]:
    """Returns the environment variables that a replica's process needs before vLLM is imported.

    Look at `vllm.envs` for their names and defaults.
    """
    # vLLM's own set-up of logging would close Ray Serve's log of the replica, and a restarted controller takes a
    # replica without one for broken.
    common = {"OMP_NUM_THREADS": str(share.threads), "VLLM_CONFIGURE_LOGGING": "0", "VLLM_NO_USAGE_STATS": "1"}
    if share.gpus:
        return common
    # Without a worker process of vLLM's, and with engines that share the cores instead of each binding all of them.
    return common | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


# The variable that would override the size of the cache in the engine's arguments.
CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"


def limit_white_space(parameters: "SamplingParams") -> None:
    """Allows one white-space character at a time between the parts of JSON in a structural tag, as a forced tool call
    has. Without a limit, models write white space until their tokens are used up.

    Look at `disable_any_whitespace` in vLLM's `backend_xgrammar`, which leaves structural tags out, and at
    `JSONSchemaFormat` of xgrammar, where 1 is the smallest limit.
    """
    form = parameters.structured_outputs
    if form is None or form.structural_tag is None:
        return
    try:
        tag = json.loads(form.structural_tag)
    except ValueError:
        # vLLM says what is wrong with a client's own structural tag.
        return
    pending = [tag]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending += part
        elif isinstance(part, dict):
            if part.get("type") == "json_schema" and part.get("style", "json") == "json":
                part["max_whitespace_cnt"] = part.get("max_whitespace_cnt") or 1
            # A schema may have a property with the name of a format.
            pending += [value for name, value in part.items() if name != "json_schema"]
    form.structural_tag = json.dumps(tag)


def require_quantization(name: str) -> None:
    """Checks that vLLM has a method of quantization. Look at `QuantizationMethods`.

    Raises:
        UserError: it has none of this name.
    """
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    require_name("serve.engine.quantization", name, QUANTIZATION_METHODS)


def require_name(key: str, name: str, known: Iterable[str]) -> None:
    """Raises a UserError that lists the names that vLLM knows unless the value of a recipe key is one of them."""
    if name not in (names := sorted(known)):
        raise UserError(f"{key}: vLLM has no {name!r}; it has {', '.join(names)}")


def template_variables(template: str | Mapping[str, str] | None) -> set[str]:
    """Returns the names that a tokenizer's chat template, or any of its several, reads from a request.

    Look at `resolve_chat_template_kwargs` in `vllm.renderers.hf`, which also lets the parameters of
    `apply_chat_template` pass, such as `padding` and `max_length`.
    """
    from vllm.renderers.hf import _resolve_chat_template_kwargs

    templates = template.values() if isinstance(template, Mapping) else [template] if template else []
    return {name for one in templates for name in _resolve_chat_template_kwargs(one)}


def max_lora_rank(rank: int) -> "MaxLoRARanks":
    """Returns the smallest of the ranks that vLLM reserves memory for that is enough for adapters of a rank.

    Look at `MaxLoRARanks`.

    Raises:
        UserError: vLLM supports no rank so large.
    """
    from vllm.config.lora import MaxLoRARanks

    supported = get_args(MaxLoRARanks)
    for one in supported:
        if one >= rank:
            return cast(MaxLoRARanks, one)
    raise UserError(f"serve.adapters: vLLM takes ranks of {max(supported)} at most, and one has {rank}")


@contextmanager
def core_client(make: Callable[..., Any]) -> Iterator[None]:
    """Makes an `AsyncLLM` that is constructed in this context use the engine core that `make` returns.

    Look at `EngineCoreClient.make_async_mp_client` and its call in `AsyncLLM.__init__`. vLLM has no setting for it.
    """
    from vllm.v1.engine.core_client import EngineCoreClient

    original = EngineCoreClient.make_async_mp_client
    EngineCoreClient.make_async_mp_client = make  # type: ignore[method-assign]
    try:
        yield
    finally:
        EngineCoreClient.make_async_mp_client = original  # type: ignore[method-assign]


def embeddings(engine: "AsyncLLM") -> int:
    """Returns how many tokens a model can write.

    Look at `vocab_size` of `StructuredOutputBackend`, which is this number.
    """
    return engine.model_config.get_vocab_size()


def end_token_ids(engine: "AsyncLLM") -> set[int]:
    """Returns the tokens at which a model's own generation config ends an answer.

    Look at `ModelConfig.try_get_generation_config`.
    """
    found = engine.model_config.try_get_generation_config().get("eos_token_id", [])
    return {found} if isinstance(found, int) else set(found)


def unfinished_requests(engine: "AsyncLLM") -> int:
    """Returns how many requests wait or run in an engine; each of a request's `n` answers counts.

    Look at `AsyncLLM.output_processor`, a private attribute in all but name.
    """
    return engine.output_processor.get_num_unfinished_requests()


async def abort_unfinished(engine: "AsyncLLM") -> int:
    """Aborts all requests of an engine whose callers are gone, and returns their number.

    `AsyncLLM.generate` does not abort a request whose caller is cancelled while it is handed to the engine: look there
    whether `q` is still None then. Such a request would count as waiting for ever.
    """
    left = list(engine.output_processor.request_states)
    if left:
        await engine.abort(left, internal=True)
    return len(left)
